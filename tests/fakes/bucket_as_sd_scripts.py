"""Puts images into buckets as sd-scripts does, and prints where they went, in JSON.

`PYTHON bucket_as_sd_scripts.py QUESTION.json`, in the checkout, by its own Python. The question has `places`,
each a dataset's keys and sizes of images, and `runs`, each a run's directory with its seed and script.
"""

import argparse
import importlib
import json
import random
import sys
from pathlib import Path

from read_as_sd_scripts import dataset_of


def places(case):
    """The bucket of each size, and the size that the image is scaled to; null where sd-scripts ends."""
    util = importlib.import_module("library.train_util")
    side, enabled = case["resolution"], case["enable_bucket"]
    if enabled:
        least, most = util.BaseDataset.adjust_min_max_bucket_reso_by_steps(
            None, (side, side), case["min_bucket_reso"], case["max_bucket_reso"], case["bucket_reso_steps"]
        )
        no_upscale, steps = case["bucket_no_upscale"], case["bucket_reso_steps"]
        made = util.BucketManager(no_upscale, (side, side), least, most, steps)
        if not no_upscale:
            made.make_buckets()
    else:
        made = util.BucketManager(False, (side, side), None, None, None)
        made.set_predefined_resos([(side, side)])
    found = []
    for width, height in case["sizes"]:
        try:
            bucket, resized, _ = made.select_bucket(width, height)
            found.append([list(map(int, bucket)), list(map(int, resized))])
        except ZeroDivisionError:
            found.append(None)
    return found


def run(case):
    """Batches, images, and rows of each bucket of a run's datasets."""
    args = argparse.Namespace(dataset_config=f"{case['run_dir']}/dataset.toml", masked_loss=True)
    random.seed(case["seed"])
    group = dataset_of(args, Path(case["script"]))
    rows = [
        sorted([*map(int, size), len(bucket)] for size, bucket in zip(made.resos, made.buckets, strict=True))
        for made in (dataset.bucket_manager for dataset in group.datasets)
    ]
    return {
        "batches": len(group),
        "repeated": group.num_train_images,
        "pictures": sum(len(dataset.image_data) for dataset in group.datasets),
        "rows": [[row for row in one if row[2]] for one in rows],
    }


if __name__ == "__main__":
    sys.path[:1] = [".", *sys.path[:1]]
    base, sd = (importlib.import_module(f"library.strategy_{name}") for name in ("base", "sd"))
    base.LatentsCachingStrategy.set_strategy(sd.SdSdxlLatentsCachingStrategy(True, False, 1, False))
    question = json.loads(Path(sys.argv[1]).read_text())
    answer = {"places": list(map(places, question["places"])), "runs": list(map(run, question["runs"]))}
    print("\nREAD " + json.dumps(answer))
