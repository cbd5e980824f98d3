"""A run whose trained weights get no gradient says so within its first steps, with the cause."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from flowloom.engine.__main__ import run_engine
from flowloom.engine.progress import Progress
from flowloom.models.weights import open_weights, save_weights
from flowloom.nn.tiny import TINY, random_chroma_weights
from flowloom.run.directory import RunDir
from flowloom.run.events import read_events

LORA = {"lora": {"rank": 2, "alpha": 2}}


@pytest.fixture(scope="session")
def untrained_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `./loom demo` makes one: the final layer is all zeros."""
    path = tmp_path_factory.mktemp("untrained") / "base.safetensors"
    save_weights(path, random_chroma_weights(TINY, seed=1), {})
    return path


def warnings(run_dir: RunDir) -> list[dict[str, Any]]:
    return [event for event in read_events(run_dir.events_jsonl) if event["kind"] == "warning"]


def with_base(run_dir: RunDir, base: Path) -> RunDir:
    config = run_dir.read_config()
    model = config.model.model_copy(update={"chroma_path": str(base)})
    run_dir.write_run(config.model_copy(update={"model": model}), "a test")
    return run_dir


@pytest.mark.parametrize("steps", [2, 8])
def test_an_adapter_on_an_untrained_base_is_warned_of_with_the_cause(
    make_run: Callable[..., RunDir], untrained_base: Path, steps: int
) -> None:
    run_dir = with_base(make_run(**LORA, limits={"max_steps": steps}), untrained_base)
    terminal = io.StringIO()
    run_engine(run_dir, Progress(terminal))
    events = list(read_events(run_dir.events_jsonl))
    assert {event["grad_norm"] for event in events if event["kind"] == "step"} == {0.0}
    (warning,) = warnings(run_dir)
    assert str(untrained_base) in warning["message"]
    assert "all zeros" in warning["message"]
    assert "model.chroma_path" in warning["hint"]
    before = [event for event in events[: events.index(warning)] if event["kind"] == "step"]
    assert len(before) == min(steps, 5)
    assert "all zeros" in terminal.getvalue()
    assert warning["hint"] in terminal.getvalue()


@pytest.mark.parametrize("kind", ["lora", "dora", "lokr"])
def test_an_adapter_of_one_step_is_not_warned_of(make_run: Callable[..., RunDir], kind: str) -> None:
    """Its first factors get no gradient yet, since the second ones begin at zero."""
    run_dir = make_run(**LORA, method={"kind": kind}, limits={"max_steps": 1})
    run_engine(run_dir)
    assert warnings(run_dir) == []


@pytest.mark.parametrize(
    "sections",
    [
        LORA,
        LORA | {"method": {"kind": "dora"}},
        LORA | {"method": {"kind": "lokr"}},
        LORA | {"training": {"updates_per_large_batch": 2}},
        {},
        {"optimizer": {"kind": "adamw_bf16"}},
        {"training": {"change_layer_every": 2, "trained_single_blocks": 1, "trained_double_blocks": 1}},
        {"training": {"trained_layer_keywords": ["double_blocks.0.", "final_layer"]}},
        {"memory": {"checkpointed_blocks": "all"}},
    ],
    ids=["lora", "dora", "lokr", "updates", "full", "bf16", "rotation", "keywords", "recomputed"],
)
def test_a_run_that_learns_is_not_warned_of(
    make_run: Callable[..., RunDir], sections: dict[str, Any]
) -> None:
    run_dir = make_run(**sections, limits={"max_steps": 7})
    run_engine(run_dir)
    assert warnings(run_dir) == []


def test_training_an_untrained_network_completely_is_no_fault(
    make_run: Callable[..., RunDir], untrained_base: Path
) -> None:
    run_dir = with_base(make_run(limits={"max_steps": 7}), untrained_base)
    run_engine(run_dir)
    assert warnings(run_dir) == []


def test_weights_that_never_get_a_gradient_are_named(
    make_run: Callable[..., RunDir], tiny_chroma_path: Path, tmp_path: Path
) -> None:
    """Where the attention's output is multiplied by zeros, its input learns nothing."""
    tensors = {name: tensor.clone() for name, tensor in open_weights(tiny_chroma_path).items()}
    for name in tensors:
        if name.startswith(("double_blocks.0.img_attn.proj", "double_blocks.0.txt_attn.proj")):
            tensors[name] = torch.zeros_like(tensors[name])
    base = tmp_path / "base.safetensors"
    save_weights(base, tensors, {})
    layers = ["double_blocks.0.img_attn.qkv", "double_blocks.0.img_mlp.0"]
    adapter = {"lora": {"rank": 2, "alpha": 2, "target_layers": layers}}
    run_dir = with_base(make_run(**adapter, limits={"max_steps": 7}), base)
    run_engine(run_dir)
    (warning,) = warnings(run_dir)
    assert warning["message"].startswith("2 of 4 trained weights got no gradient in the first 5 steps")
    assert "double_blocks.0.img_attn.qkv" in warning["message"]
    assert "img_mlp" not in warning["message"]
    assert "lora.target_layers" in warning["hint"]
