"""Adapters of a run, as other programs load them: checkpoints, exports, merges."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from flowloom.cli import main
from flowloom.engine.__main__ import run_engine
from flowloom.parts.families.weights import open_weights
from flowloom.spec.rundir import RunDir
from tests.parts.adapters.comfyui import loaded_as_comfyui_does

RANK, ALPHA = 2, 6.0


@pytest.fixture
def dora_run(make_run: Callable[..., RunDir]) -> RunDir:
    """A DoRA of a few large steps, with an average."""
    run_dir = make_run(
        lora={"rank": RANK, "alpha": ALPHA},
        method={"kind": "dora"},
        limits={"max_steps": 3},
        training={"lr": 0.05},
        ema={"decay": 0.9},
    )
    run_engine(run_dir)
    return run_dir


def trained_weights(tensors: dict[str, Tensor], base: dict[str, Tensor]) -> dict[str, Tensor]:
    """By DoRA's formula, of the tensors as a run keeps them."""
    weights = dict(base)
    for name in [name.removesuffix(".dora_scale") for name in tensors if name.endswith(".dora_scale")]:
        delta = tensors[f"{name}.lora_B.weight"] @ tensors[f"{name}.lora_A.weight"]
        total = base[f"{name}.weight"].float() + ALPHA / RANK * delta
        weights[f"{name}.weight"] = (tensors[f"{name}.dora_scale"] / total.norm(dim=1))[:, None] * total
    return weights


def read(path: Path) -> dict[str, Tensor]:
    return {name: tensor.float() for name, tensor in open_weights(path).items()}


@pytest.mark.parametrize(
    ("file", "kept"), [("adapter", "weights"), ("adapter_ema", "ema")], ids=["weights", "average"]
)
def test_comfyui_loads_a_checkpoints_dora_as_it_was_trained(dora_run: RunDir, file: str, kept: str) -> None:
    folder = dora_run.checkpoint_dir(3)
    base = read(Path(dora_run.read_config().model.chroma_path))
    expected = trained_weights(read(folder / "state" / f"{kept}.safetensors"), base)
    loaded = loaded_as_comfyui_does(folder / f"{file}.safetensors", base)
    name = "single_blocks.0.linear1.weight"
    assert (expected[name] - base[name]).abs().max() > 0.01
    for name, weight in expected.items():
        torch.testing.assert_close(loaded[name], weight, rtol=0, atol=3e-6)


@pytest.mark.parametrize(("choice", "kept"), [("ema", "ema"), ("raw", "weights")])
def test_a_dora_is_exported_with_the_scales_that_lycoris_takes(
    dora_run: RunDir, choice: str, kept: str, tmp_path: Path
) -> None:
    out = tmp_path / "kohya.safetensors"
    words = ["export", str(dora_run.path), "--format", "kohya", "--weights", choice, "-o", str(out)]
    assert main(words) == 0
    exported = read(out)
    for name, tensor in read(dora_run.checkpoint_dir(3) / "state" / f"{kept}.safetensors").items():
        if name.endswith(".dora_scale"):
            layer = name.removesuffix(".dora_scale").replace(".", "_")
            torch.testing.assert_close(
                exported[f"lora_unet_{layer}.dora_scale"][:, 0], tensor, rtol=2e-6, atol=0
            )


def test_an_export_that_needs_the_base_says_so(dora_run: RunDir, tmp_path: Path, capsys) -> None:
    lone = tmp_path / "alone" / "fox.safetensors"
    lone.parent.mkdir()
    (dora_run.checkpoint_dir(3) / "adapter.safetensors").rename(lone)
    words = ["export", str(lone), "--format", "diffusers", "-o", str(tmp_path / "out.safetensors")]
    assert main(words) == 2
    assert "Name the base model that this DoRA was trained on" in capsys.readouterr().err
    base = dora_run.read_config().model.chroma_path
    assert main([*words, "--base", base]) == 0


def test_a_merge_is_what_was_trained(dora_run: RunDir, tmp_path: Path) -> None:
    out = tmp_path / "merged.safetensors"
    words = ["export", str(dora_run.path), "--format", "merged", "--weights", "raw", "-o", str(out)]
    assert main(words) == 0
    base = read(Path(dora_run.read_config().model.chroma_path))
    expected = trained_weights(read(dora_run.checkpoint_dir(3) / "state" / "weights.safetensors"), base)
    dtype = next(iter(open_weights(out).dtypes.values()))
    for name, tensor in open_weights(out).items():
        torch.testing.assert_close(tensor, expected[name].to(dtype), rtol=1e-2, atol=3e-6)
