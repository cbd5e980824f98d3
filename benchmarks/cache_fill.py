"""Fill a cache with 48 images on small networks: share of the slowest stage in the time of its phase.

Images go through reading and decoding (threads), the VAE and writing; then captions through T5 and writing.
In each phase one thread drives the network, and writes: what it waits for is time that the network stands
still. The figure is the share of the slowest stage in the phase that does worse; `slowest` says which it is.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.timing import Measured, one_thread
from flowloom.config.run import RunConfig
from flowloom.engine.fill_cache import Filled, fill, stats, verify
from flowloom.tasks.demo import model_section

TARGET = 0.85
NUM_IMAGES = 48
WIDTH, HEIGHT = 1600, 1200


def write_data(folder: Path) -> None:
    """Detailed images, each with prose of some thirty words."""
    draw = np.random.default_rng(0)
    rows = []
    for i in range(NUM_IMAGES):
        coarse = draw.integers(0, 256, (HEIGHT // 25, WIDTH // 25, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
        picture.save(folder / f"{i}.jpg", quality=90)
        words = " ".join(f"word{n}" for n in draw.integers(0, 999, 30))
        rows.append({"filename": f"{i}.jpg", "caption_or_tags": words, "width": WIDTH, "height": HEIGHT})
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def config_of(folder: Path) -> RunConfig:
    """A run on the demo's networks."""
    return RunConfig.model_validate(
        {
            "model": model_section(folder / "none.safetensors"),
            "dataloader": {
                "jsonl_metadata_path": str(folder / "data.jsonl"),
                "image_folder_path": str(folder),
                "base_resolution": [512],
            },
            "cache": {"latents": "disk", "text": "disk", "dir": str(folder / "cache")},
            "parallel": {"device": "cpu", "num_threads": 1},
        }
    )


def busiest(filled: Filled) -> tuple[str, float]:
    """The phase that does worse: its slowest stage and that stage's share of the phase."""
    shares = []
    for network, waits in (("VAE", "reading images"), ("text encoder", "reading captions")):
        phase = {name: filled.seconds.get(name, 0.0) for name in (network, waits)}
        # The time of writing is not split by phase: each phase is charged with all of it.
        phase["writing"] = filled.seconds.get("writing", 0.0)
        stage = max(phase, key=lambda name: phase[name])
        shares.append((phase[stage] / max(sum(phase.values()), 1e-9), stage))
    share, stage = min(shares)
    return stage, share


def run() -> Measured:
    """Share of the slowest stage; correct when every image and caption is in the cache, as written."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_data(folder)
        config = config_of(folder)
        with one_thread():
            filled = fill(config)
        kinds = stats(config).kinds
        is_whole = kinds["image-latents"][0] == NUM_IMAGES and not list(verify(config))
    stage, share = busiest(filled)
    return Measured(
        ratio=share,
        target=TARGET,
        correct=is_whole and filled.images == NUM_IMAGES,
        detail={
            "slowest": stage,
            "images_per_s": filled.images / (filled.seconds["VAE"] + filled.seconds["reading images"]),
            "captions_per_s": filled.captions
            / (filled.seconds["text encoder"] + filled.seconds["reading captions"]),
            **filled.seconds,
        },
    )
