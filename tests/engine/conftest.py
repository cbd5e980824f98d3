"""A dataset of synthetic images and runs on the tiny family, the basis of every engine test."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flowloom.config.run import RunConfig
from flowloom.run.directory import RunDir
from tests.engine.mirrored import bucket, short_leases, unmirrored  # noqa: F401 -- fixtures

COLOURS = {"red": (220, 40, 40), "green": (40, 180, 60), "blue": (50, 80, 220), "yellow": (240, 210, 40)}


@pytest.fixture(scope="session")
def synthetic_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 22 images of coloured bars in two shapes, and data.jsonl."""
    folder = tmp_path_factory.mktemp("drawn")
    rows = []
    for i in range(22):
        name, colour = list(COLOURS.items())[i % 4]
        width, height = (64, 64) if i % 3 else (96, 48)
        pixels = np.full((height, width, 3), 255, np.uint8)
        pixels[i % 5 + 8 : -8, 8 + i % 7 : -8] = colour
        Image.fromarray(pixels).save(folder / f"{i:02d}.png")
        rows.append(
            {
                "filename": f"{i:02d}.png",
                "caption_or_tags": f"{name}, bar, number {i}",
                "width": width,
                "height": height,
                "is_tag_based": bool(i % 2),
                "is_url_based": False,
                "loss_weight": 0.5 + i / 44,
            }
        )
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="session")
def make_config(synthetic_data: Path, tiny_family: Any) -> Callable[..., RunConfig]:
    """`make_config(training={...}, ...)`: a small run on the synthetic images, merged over the defaults."""
    defaults: dict[str, dict[str, Any]] = {
        "training": {
            "lr": 1e-3,
            "train_minibatch": 4,
            "save_every": 1000,
            "warmup_steps": 2,
            "weight_decay": 0.01,
        },
        "dataloader": {
            "batch_size": 4,
            "jsonl_metadata_path": str(synthetic_data / "data.jsonl"),
            "image_folder_path": str(synthetic_data),
            "base_resolution": [64],
            "resolution_step": 16,
            "ratio_cutoff": 3.0,
            "uncond_percentage": 0.1,
            "tag_drop_percentage": 0.3,
        },
        "model": {
            "chroma_path": str(tiny_family.chroma_path),
            "vae_path": str(tiny_family.vae_path),
            "t5_path": str(tiny_family.t5_path),
            "t5_config_path": str(tiny_family.t5_path / "config.json"),
            "t5_tokenizer_path": str(tiny_family.t5_path),
            "t5_max_length": 64,
        },
        "parallel": {"device": "cpu", "num_threads": 1},
        "limits": {"max_steps": 6},
    }

    def make(**sections: Any) -> RunConfig:
        merged: dict[str, Any] = {key: dict(section) for key, section in defaults.items()}
        for key, section in sections.items():
            merged[key] = merged.get(key, {}) | section if isinstance(section, dict) else section
        return RunConfig.model_validate(merged)

    return make


@pytest.fixture
def make_run(tmp_path: Path, make_config: Callable[..., RunConfig]) -> Callable[..., RunDir]:
    """`make_run("name", training={...})`: a run directory, ready for the engine."""

    def make(name: str = "run", **sections: Any) -> RunDir:
        run_dir = RunDir.create(name, tmp_path / "runs")
        run_dir.write_run(make_config(**sections), "a test")
        return run_dir

    return make


@pytest.fixture
def own_encoders(tmp_path: Path, tiny_family: Any) -> dict[str, str]:
    """Model paths to encoders of this test's own, so that it may delete them."""
    vae, t5 = tmp_path / "encoders" / "ae.safetensors", tmp_path / "encoders" / "t5"
    vae.parent.mkdir()
    shutil.copy(tiny_family.vae_path, vae)
    shutil.copytree(tiny_family.t5_path, t5)
    return {
        "vae_path": str(vae),
        "t5_path": str(t5),
        "t5_config_path": str(t5 / "config.json"),
        "t5_tokenizer_path": str(t5),
    }
