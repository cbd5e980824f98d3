"""A checkpoint that is written while training continues holds the state of its step, to the last byte."""

from __future__ import annotations

import errno
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from flowloom.engine import checkpoint
from flowloom.engine.__main__ import run_engine
from flowloom.engine.build import build
from flowloom.engine.parallel.ranks import Ranks
from flowloom.engine.shard_files import SaveGroup
from flowloom.engine.snapshot import HostBuffers, Snapshot, copied_bytes, take_snapshot
from flowloom.errors import DiskFullError, TrainingError
from flowloom.run.directory import RunDir
from flowloom.run.events import read_events

DELAY = 4
"""Steps between the snapshot and the first byte that is written."""
ROTATION = {"change_layer_every": 2, "trained_single_blocks": 1, "trained_double_blocks": 1}
PREVIEW = {"inference_every": 3, "steps": 1, "prompts": ["red"], "image_dim": [64, 64]}
EMA = {"ema": {"decay": 0.9}}
STREAMED = {"memory": {"streamed_blocks": "all"}}
METHODS: dict[str, dict[str, Any]] = {
    "full": {**EMA, "validation": {"share": 0.2, "every": 3}},
    "rotation": {"training": ROTATION},
    "rotation, averaged": {"training": ROTATION, **EMA, "inference": PREVIEW},
    "rotation, streamed": {"training": ROTATION, **STREAMED, **EMA, "inference": PREVIEW},
    "keywords": {
        "training": {"trained_layer_keywords": ["attn"]},
        "parallel": {"device": "cpu", "dtype": "bf16"},
    },
    "lora": {"lora": {"rank": 2, "alpha": 4}, **EMA, "inference": PREVIEW},
    "dora, streamed": {"lora": {"rank": 2, "alpha": 4}, "method": {"kind": "dora"}, **STREAMED},
}  # fmt: skip


class Delay:
    """Holds back each save in the background until so many steps were made after its snapshot."""

    def __init__(self) -> None:
        self.step = 0
        self.changed = threading.Condition()
        self.at_once = 0

    def on_event(self, event: dict[str, Any]) -> None:
        if event["kind"] == "step":
            with self.changed:
                self.step = event["step"]
                self.changed.notify_all()

    @contextmanager
    def holding_back(self) -> Iterator[None]:
        save = checkpoint.save

        def late(run_dir: RunDir, snapshot: Snapshot, group: SaveGroup) -> Path:
            if threading.current_thread() is not threading.main_thread():
                self.at_once += 1
                assert self.at_once == 1, "two saves at a time"
                with self.changed:
                    assert self.changed.wait_for(lambda: self.step >= snapshot.step + DELAY, timeout=20)
                self.at_once -= 1
            return save(run_dir, snapshot, group)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(checkpoint, "save", late)
            yield


def content(folder: Path) -> dict[str, Any]:
    """Every file of a checkpoint; without the time and the configuration, which has the tested key."""
    files: dict[str, Any] = {p.name: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    files["trainer.json"] = json.loads(files["trainer.json"]) | {"seconds": 0}
    for name in files:
        if name.endswith(".safetensors"):
            end = 8 + int.from_bytes(files[name][:8], "little")
            header = json.loads(files[name][8:end])
            header.get("__metadata__", {}).pop("flowloom.config", None)
            files[name] = header, files[name][end:]
    return files


@pytest.mark.parametrize("method", METHODS)
def test_a_file_that_is_written_late_holds_the_state_of_its_step(
    make_run: Callable[..., RunDir], method: str
) -> None:
    """Steps, rotations, validation and previews change weights in place before the file is written."""
    sections = METHODS[method] | {"limits": {"max_steps": 11}}
    sections["training"] = {"save_every": 6, "lr": 1e-2, "warmup_steps": 0, **sections.get("training", {})}
    waits = make_run("waits", **sections, checkpoint={"in_background": False})
    run_engine(waits)
    delay = Delay()
    late = make_run("late", **sections)
    with delay.holding_back():
        run_engine(late, delay.on_event)
    assert [folder.name[-2:] for folder in late.checkpoints()] == ["06", "11"]
    for one, other in zip(waits.checkpoints(), late.checkpoints(), strict=True):
        expected, found = content(one), content(other)
        assert expected.keys() == found.keys()
        assert [name for name in expected if expected[name] != found[name]] == []
    order = [(event["kind"], event["step"]) for event in read_events(late.events_jsonl) if "step" in event]
    assert order.index(("saved", 6)) > order.index(("step", 6 + DELAY))


def test_a_save_that_fails_beside_the_training_ends_the_run_with_its_reason(
    make_run: Callable[..., RunDir], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = make_run(training={"save_every": 2}, limits={"max_steps": 1000})
    real = checkpoint.save_weights

    def full(path: Path, *arguments: Any) -> None:
        if "step_00000004" in str(path) and threading.current_thread() is not threading.main_thread():
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, *arguments)

    monkeypatch.setattr(checkpoint, "save_weights", full)
    with pytest.raises(DiskFullError):
        run_engine(run_dir)
    events = list(read_events(run_dir.events_jsonl))
    assert events[-1]["kind"] == "failed"
    assert events[-1]["error"] == "DiskFullError"
    assert max(event["step"] for event in events if event["kind"] == "step") <= 6
    assert [folder.name for folder in run_dir.checkpoints()] == ["step_00000002"]
    assert not list(run_dir.path.rglob("*.tmp"))


def test_a_failure_while_a_checkpoint_is_written_waits_for_it(make_run: Callable[..., RunDir]) -> None:
    """The hint of the failure names it, and a resume continues from it."""
    run_dir = make_run(training={"save_every": 3}, limits={"max_steps": 9})
    delay = Delay()

    def fail_later(event: dict[str, Any]) -> None:
        delay.on_event(event)
        if event["kind"] == "step" and event["step"] == 5:
            threading.Timer(0.3, delay.on_event, [{"kind": "step", "step": 99}]).start()
            raise ValueError("on purpose")

    with delay.holding_back(), pytest.raises(TrainingError, match="on purpose"):
        run_engine(run_dir, fail_later)
    kinds = [event["kind"] for event in read_events(run_dir.events_jsonl)]
    assert kinds[-2:] == ["saved", "failed"]
    assert run_dir.latest_checkpoint() == run_dir.checkpoint_dir(3)
    run_engine(run_dir)
    assert run_dir.latest_checkpoint() == run_dir.checkpoint_dir(9)


@pytest.mark.parametrize(
    "sections",
    [
        EMA,
        {"lora": {"rank": 4, "alpha": 4}, **EMA},
        {"lora": {"rank": 4, "alpha": 4}, "optimizer": {"device": "cpu"}},
        {"training": ROTATION},
        {"training": {"trained_layer_keywords": ["single_blocks.0"]}, "optimizer": {"kind": "adamw_bf16"}},
    ],
)
def test_the_memory_plan_knows_the_size_of_the_copy(
    make_config: Callable[..., Any], sections: dict[str, Any]
) -> None:
    components = build(make_config(**sections), Ranks())
    state = components.state
    for weight in state.updated.values():
        weight.grad = torch.zeros_like(weight)
    state.optimizer.step()
    assert components.memory_plan.snapshot == pytest.approx(copied_bytes(state), rel=0.01)


def test_host_memory_is_used_again_and_frozen_weights_take_none(make_config: Callable[..., Any]) -> None:
    state = build(make_config(training={"trained_layer_keywords": ["single_blocks.0"]}, **EMA), Ranks()).state
    buffers = HostBuffers()
    first, second = (take_snapshot(state, {}, buffers).numbers for _ in range(2))
    live = state.model.state_dict()
    copied = {name for name, weight in first.weights.items() if weight.data_ptr() != live[name].data_ptr()}
    assert copied == set(state.trained)
    assert len(copied) < len(live)
    assert all(first.weights[name].data_ptr() == second.weights[name].data_ptr() for name in copied)
    name = min(copied)
    assert torch.equal(first.average[name], live[name])


def test_training_waits_for_a_save_where_the_host_has_no_room_for_a_copy(
    make_run: Callable[..., RunDir], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flowloom.engine.saves.available_bytes", lambda: 2**20)
    run_dir = make_run(training={"save_every": 1}, limits={"max_steps": 3})
    run_engine(run_dir)
    events = list(read_events(run_dir.events_jsonl))
    (warning,) = [event for event in events if event["kind"] == "warning"]
    assert "1.0 MiB are free" in warning["message"]
    assert "checkpoint.in_background" in warning["hint"]
    steps = [(event["kind"], event["step"]) for event in events if event["kind"] in ("step", "saved")]
    assert steps == [(kind, step) for step in (1, 2, 3) for kind in ("step", "saved")]


def test_the_size_of_a_copy_is_known_before_it_is_made(make_config: Callable[..., Any]) -> None:
    state = build(make_config(lora={"rank": 2, "alpha": 4}, **EMA), Ranks()).state
    for weight in state.trained.values():
        weight.grad = torch.ones_like(weight)
    state.optimizer.step()
    buffers = HostBuffers()
    take_snapshot(state, {}, buffers)
    assert (
        buffers.num_bytes == copied_bytes(state) > sum(weight.nbytes for weight in state.trained.values()) * 4
    )


def test_copies_of_low_bit_states_are_low_bit_states() -> None:
    subclass = pytest.importorskip("torchao.optim.subclass_8bit", reason="torchao is not installed")
    state = subclass.OptimState8bit.zeros((16, 256))
    state.copy_(torch.randn(16, 256))
    found = HostBuffers().copied("moment", {"moment": state, "step": 3})
    assert type(found["moment"]) is type(state)
    assert found["step"] == 3
    assert torch.equal(found["moment"].codes, state.codes)
    before = found["moment"].dequantize()
    state.copy_(torch.zeros(16, 256))
    assert torch.equal(found["moment"].dequantize(), before)
    assert before.any()
