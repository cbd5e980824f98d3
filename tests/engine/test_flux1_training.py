"""FLUX.1 trained by the engine and the command line: methods, caches, resume, export, operations."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from flowloom.config.model_files import resolve_paths
from flowloom.config.run import ModelSection
from flowloom.engine.__main__ import run_engine
from flowloom.models.weights import open_weights
from flowloom.run.directory import RunDir
from flowloom.run.events import read_events
from flowloom.run.resume import change_by_flags

pytestmark = pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning")
META = torch.device("meta")
MAX_LENGTH = 24
LORA = {"rank": 2, "alpha": 2}
METHODS: dict[str, dict[str, Any]] = {
    "full": {},
    "keywords": {
        "training": {"trained_layer_keywords": ["single_blocks.1."]},
        "method": {"kind": "keywords"},
    },
    "rotation": {
        "training": {"change_layer_every": 1, "trained_single_blocks": 1, "trained_double_blocks": 1},
    },
    "dora": {"lora": LORA, "method": {"kind": "dora"}},
    "lokr": {"lora": LORA, "method": {"kind": "lokr"}},
    "8bit": {"lora": LORA | {"base_model_quant_level": "8bit"}},
    "4bit": {"lora": LORA | {"base_model_quant_level": "4bit"}},
    "recomputed": {"lora": LORA, "memory": {"checkpointed_blocks": 2}},
    "ema": {"lora": LORA, "ema": {"decay": 0.9}},
}


def model_section(folder: Path) -> dict[str, Any]:
    section = ModelSection(path=str(folder), t5_max_length=MAX_LENGTH)
    return resolve_paths(section, Path()).model_dump() | {"chroma_path": ""}


@pytest.fixture
def model(tiny_flux1_dir: Path) -> dict[str, Any]:
    return model_section(tiny_flux1_dir)


def losses(run_dir: RunDir) -> list[float]:
    return [event["loss"] for event in read_events(run_dir.events_jsonl) if event["kind"] == "step"]


def tensors(run_dir: RunDir) -> dict[str, torch.Tensor]:
    checkpoint = run_dir.latest_checkpoint()
    assert checkpoint
    paths = sorted(checkpoint.glob("*.safetensors"))
    return {f"{path.name}:{name}": tensor for path in paths for name, tensor in open_weights(path).items()}


@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_run_equals_an_uninterrupted_one(
    make_run: Callable[..., RunDir], model: dict[str, Any], method: str
):
    sections = {"model": model, **METHODS[method]}
    whole, parts = make_run("whole", **sections), make_run("parts", **sections)
    for run_dir, ends in ((whole, [3]), (parts, [2, 3])):
        for end in ends:
            change_by_flags(run_dir, [("limits.max_steps", str(end))])
            run_engine(run_dir)
    assert losses(whole) == losses(parts)
    assert len(losses(whole)) == 3
    assert all(0 < loss < 10 for loss in losses(whole))
    expected, found = tensors(whole), tensors(parts)
    assert expected.keys() == found.keys()
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())


def test_recomputed_blocks_change_no_loss(make_run: Callable[..., RunDir], model: dict[str, Any]):
    runs = [make_run(str(n), model=model, lora=LORA, memory={"checkpointed_blocks": n}) for n in (0, 3)]
    for run_dir in runs:
        run_engine(run_dir)
    assert losses(runs[0]) == pytest.approx(losses(runs[1]), rel=1e-6)


def test_a_disk_cache_trains_without_the_encoders(
    make_run: Callable[..., RunDir], tiny_flux1_dir: Path, tmp_path: Path
):
    folder = tmp_path / "pipeline"
    shutil.copytree(tiny_flux1_dir, folder)
    model = model_section(folder)
    data = {"uncond_percentage": 0.0, "tag_drop_percentage": 0.0, "shuffle_tags": False}
    sections: dict[str, Any] = {"model": model, "lora": LORA, "dataloader": data}
    cache = {"latents": "disk", "text": "disk", "dir": str(tmp_path / "cache"), "dtype": "fp32"}
    plain, filled = make_run("plain", **sections), make_run("filled", **sections, cache=cache)
    run_engine(plain)
    run_engine(filled)
    assert losses(plain) == losses(filled)
    for part in ("vae", "text_encoder", "text_encoder_2"):
        shutil.rmtree(folder / part)
    cached = make_run("cached", **sections, cache=cache)
    run_engine(cached)
    assert losses(cached) == losses(filled)


def run_flowloom(*arguments: object) -> str:
    command = [sys.executable, "-m", "flowloom.cli.main", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_command_line_trains_and_exports_a_lora_that_diffusers_loads(
    synthetic_data: Path, tiny_flux1_dir: Path, tmp_path: Path
):
    from diffusers import FluxPipeline

    config = {
        "model": {"path": str(tiny_flux1_dir), "t5_max_length": MAX_LENGTH},
        "dataloader": {
            "jsonl_metadata_path": str(synthetic_data / "data.jsonl"),
            "image_folder_path": str(synthetic_data),
            "base_resolution": [64],
            "resolution_step": 16,
            "batch_size": 2,
        },
        "training": {"lr": 0.02},
        "lora": {"rank": 2, "alpha": 4},
        "parallel": {"device": "cpu", "num_threads": 1},
        "limits": {"max_steps": 2},
    }
    path, exported = tmp_path / "config.json", tmp_path / "lora.safetensors"
    path.write_text(json.dumps(config))
    planned = run_flowloom("train", path, "--runs-dir", tmp_path / "runs", "--dry-run")
    assert "flux1" in planned
    run_flowloom("train", path, "--runs-dir", tmp_path / "runs", "--name", "fox")
    assert len(losses(RunDir(tmp_path / "runs" / "fox"))) == 2
    run_flowloom("export", tmp_path / "runs" / "fox", "--format", "diffusers", "--out", exported)
    pipeline = FluxPipeline.from_pretrained(tiny_flux1_dir, local_files_only=True)
    pipeline.load_lora_weights(str(exported))
    loaded = dict(pipeline.transformer.named_parameters())
    factors = {name: weight for name, weight in loaded.items() if ".lora_" in name}
    assert len(factors) == len(open_weights(exported)) > 0
    assert all(weight.any() for name, weight in factors.items() if ".lora_B." in name)
