"""Runs on 2 and 4 ranks equal the run of one rank, up to the order of sums."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from flowloom.engine.__main__ import run_engine
from flowloom.models.weights import open_weights
from flowloom.run.directory import RunDir
from flowloom.run.events import read_events
from tests.engine.processes import run_all_on_ranks

PREVIEW = {"inference_every": 6, "steps": 2, "prompts": ["red, bar"], "image_dim": [64, 64], "cfg": 2.0}
TRAINING = {"lr": 1e-3, "warmup_steps": 2, "train_minibatch": 2}
RUNS: dict[str, dict[str, Any]] = {
    "full": {
        "ema": {"decay": 0.9},
        "validation": {"share": 0.2, "every": 6},
        "inference": PREVIEW,
    },
    "lora": {"lora": {"rank": 4, "alpha": 8}, "ema": {"decay": 0.9}},
    "rotation": {
        "training": TRAINING
        | {"change_layer_every": 3, "trained_single_blocks": 1, "trained_double_blocks": 1}
    },
    "keywords": {
        "training": TRAINING | {"trained_layer_keywords": ["single_blocks.1."]},
        "method": {"kind": "keywords"},
    },
    "updates": {"training": TRAINING | {"updates_per_large_batch": 3}},
    "broken": {
        "training": TRAINING | {"updates_per_large_batch": 2},
        "lora": {"rank": 4, "alpha": 8},
        "limits": {"max_steps": None, "max_epochs": 1},
    },
    "random-streamed": {
        "objective": {"pairing": "random"},
        "memory": {"checkpointed_blocks": "all", "streamed_blocks": 1},
        "lora": {"rank": 4, "alpha": 8},
        "batching": {"pack_aspect_ratios": True},
    },
}
"""Batches of 5, 5 and 4, 5, 3 rows: of some, a rank has nothing. For `broken` one file is not an image."""

ON_FOUR = ("full", "updates", "broken")
"""Runs that are also made on four ranks."""


@pytest.fixture(scope="module")
def runs(
    make_config: Callable[..., Any], synthetic_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[int, RunDir]]:
    """Every run on 1, 2 and 4 ranks."""
    root = tmp_path_factory.mktemp("world sizes")
    shutil.copytree(synthetic_data, root / "images")
    (root / "images" / "03.png").write_bytes(b"no image")
    broken = {
        "jsonl_metadata_path": str(root / "images" / "data.jsonl"),
        "image_folder_path": str(root / "images"),
    }
    found: dict[str, dict[int, RunDir]] = {name: {} for name in RUNS}
    for num_ranks in (1, 2, 4):
        names = ON_FOUR if num_ranks == 4 else RUNS
        for name in names:
            sections = RUNS[name]
            run_dir = RunDir.create(f"{name}-{num_ranks}", root)
            defaults: dict[str, Any] = {
                "training": TRAINING,
                "dataloader": {"batch_size": 5} | (broken if name == "broken" else {}),
                "limits": {"max_steps": 6},
                # auto would shard the network when other tests have taken the memory.
                "parallel": {"strategy": "ranks"},
            }
            run_dir.write_run(make_config(**(defaults | sections)), "a test")
            found[name][num_ranks] = run_dir
        started = [found[name][num_ranks] for name in names]
        if num_ranks == 1:
            for run_dir in started:
                run_engine(run_dir)
        else:
            assert run_all_on_ranks(started, num_ranks) == 0
    return found


def events_of(run_dir: RunDir, kind: str) -> list[dict[str, Any]]:
    return [event for event in read_events(run_dir.events_jsonl) if event["kind"] == kind]


def tensors_of(run_dir: RunDir) -> dict[str, torch.Tensor]:
    checkpoint = run_dir.latest_checkpoint()
    assert checkpoint is not None
    return {
        f"{path.name}:{name}": tensor
        for path in sorted(checkpoint.rglob("*.safetensors"))
        for name, tensor in open_weights(path).items()
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "num_ranks"), [*((name, 2) for name in RUNS), *((name, 4) for name in ON_FOUR)]
)
def test_any_number_of_ranks_makes_the_run_of_one(
    runs: dict[str, dict[int, RunDir]], name: str, num_ranks: int
) -> None:
    one, several = runs[name][1], runs[name][num_ranks]
    expected, found = events_of(one, "step"), events_of(several, "step")
    assert len(expected) == len(found) == (10 if name == "broken" else 6)
    skipped = [[event["line"] for event in events_of(run_dir, "skipped")] for run_dir in (one, several)]
    assert skipped == ([[4], [4]] if name == "broken" else [[], []])
    for before, after in zip(expected, found, strict=True):
        for key in ("step", "epoch", "batch", "lr"):
            assert after[key] == before[key]
        bins, others = ([mean or 0 for mean in event["loss_by_noise_level"]] for event in (before, after))
        assert others == pytest.approx(bins, rel=1e-5)
        for key in ("loss", "loss_smooth", "grad_norm"):
            assert after[key] == pytest.approx(before[key], rel=1e-5), (before["step"], key)
    weights, changed = tensors_of(one), tensors_of(several)
    assert weights.keys() == changed.keys()
    for key, weight in weights.items():
        difference = (changed[key].double() - weight.double()).abs()
        # Adam turns a gradient near 0 into a step of full size, in either direction.
        assert difference.max() < 5e-4, key
        assert difference.mean() < 1e-5, key


@pytest.mark.slow
@pytest.mark.parametrize("num_ranks", [2, 4])
def test_validation_and_previews_are_those_of_one_rank(
    runs: dict[str, dict[int, RunDir]], num_ranks: int
) -> None:
    one, several = runs["full"][1], runs["full"][num_ranks]
    expected, found = events_of(one, "validated"), events_of(several, "validated")
    assert [event["weights"] for event in expected] == ["raw", "ema"]
    for before, after in zip(expected, found, strict=True):
        assert after["by_quantile"] == pytest.approx(before["by_quantile"], rel=1e-5)
    images = sorted(path.relative_to(one.path) for path in one.path.glob("samples/*/*.png"))
    assert images
    for image in images:
        with Image.open(one.path / image) as mine, Image.open(several.path / image) as other:
            difference = np.asarray(mine, np.int16) - np.asarray(other, np.int16)
        assert np.abs(difference).max() <= 1
