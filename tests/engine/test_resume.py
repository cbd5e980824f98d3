"""A run that is killed at any moment and resumed equals one that was never interrupted, bit for bit."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from flowloom.engine.__main__ import run_engine
from flowloom.engine.build import build
from flowloom.engine.checkpoint import load
from flowloom.engine.parallel.ranks import Ranks
from flowloom.models.weights import open_weights
from flowloom.run.directory import RunDir
from flowloom.run.events import read_events
from flowloom.run.resume import change_by_flags
from tests.engine.processes import ForkedProcess, start_engine

STEPS = 14
METHODS: dict[str, dict[str, Any]] = {
    "full": {"ema": {"decay": 0.9}, "validation": {"share": 0.2, "every": 5}},
    "updates": {
        "training": {"updates_per_large_batch": 3, "save_every": 2, "lr": 1e-3, "train_minibatch": 1}
    },
    "rotation": {
        "training": {
            "change_layer_every": 3,
            "trained_single_blocks": 1,
            "trained_double_blocks": 1,
            "save_every": 2,
            "lr": 1e-3,
        },
        "ema": {"decay": 0.9},
    },
    "rotation_reset": {
        "training": {"change_layer_every": 4, "trained_single_blocks": 1, "save_every": 3, "lr": 1e-3},
        "method": {"rotation_states": "reset"},
    },
    "lora": {"lora": {"rank": 2, "alpha": 4}, "ema": {"decay": 0.9}},
    "packed": {"batching": {"pack_aspect_ratios": True}, "training": {"save_every": 2, "lr": 1e-3}},
    "cached": {"cache": {"latents": "memory", "text": "memory"}, "optimizer": {"kind": "adamw_bf16"}},
}
PREVIEW = {"inference_every": 4, "steps": 2, "prompts": ["red, bar"], "image_dim": [64, 64], "cfg": 2.0}


def losses(run_dir: RunDir) -> dict[int, float]:
    """The loss of each step; a step made twice must have given the same one both times."""
    found: dict[int, float] = {}
    for event in read_events(run_dir.events_jsonl):
        if event["kind"] == "step":
            assert found.setdefault(event["step"], event["loss"]) == event["loss"]
    return found


def final_tensors(run_dir: RunDir) -> dict[str, torch.Tensor]:
    checkpoint = run_dir.latest_checkpoint()
    assert checkpoint is not None
    assert checkpoint.name == f"step_{STEPS:08d}"
    return tensors_of(run_dir)


def tensors_of(run_dir: RunDir) -> dict[str, torch.Tensor]:
    """Every tensor in the safetensors files of the newest checkpoint."""
    checkpoint = run_dir.latest_checkpoint()
    assert checkpoint is not None
    tensors = {}
    for path in sorted(checkpoint.rglob("*.safetensors")):
        tensors |= {f"{path.name}:{name}": tensor for name, tensor in open_weights(path).items()}
    return tensors


def assert_same_run(one: RunDir, other: RunDir) -> None:
    assert losses(one) == losses(other)
    assert sorted(losses(one)) == list(range(1, STEPS + 1))
    expected, found = final_tensors(one), final_tensors(other)
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name
    previews = [
        sorted(p.relative_to(run.path) for p in run.path.glob("samples/*/*.png")) for run in (one, other)
    ]
    assert previews[0] == previews[1]
    assert previews[0]
    for preview in previews[0]:
        assert (one.path / preview).read_bytes() == (other.path / preview).read_bytes()


@pytest.mark.parametrize("method", METHODS)
def test_resuming_step_by_step_equals_never_stopping(make_run: Callable[..., RunDir], method: str) -> None:
    """Stopped after every few steps at places that fall within epochs, batches and turns."""
    sections = {"training": {"save_every": 3}, "inference": PREVIEW, **METHODS[method]}
    whole = make_run("whole", **sections, limits={"max_steps": STEPS})
    run_engine(whole)
    pieces = make_run("pieces", **sections, limits={"max_steps": STEPS})
    for stop_at in (1, 4, 5, 9):
        stop_after(pieces, stop_at)
    run_engine(pieces)
    assert_same_run(whole, pieces)


def stop_after(run_dir: RunDir, step: int) -> None:
    def ask(event: dict[str, Any]) -> None:
        if event["kind"] == "step" and event["step"] == step:
            run_dir.request("stop")

    run_engine(run_dir, ask)
    assert list(read_events(run_dir.events_jsonl))[-1]["kind"] == "stopped"


@pytest.mark.parametrize("sections", [{}, {"lora": {"rank": 2, "alpha": 4}}], ids=["full", "lora"])
def test_an_average_that_is_switched_on_later_starts_from_the_trained_weights(
    make_run: Callable[..., RunDir], sections: dict[str, Any]
) -> None:
    run_dir = make_run(**sections, training={"lr": 1e-2, "warmup_steps": 0}, limits={"max_steps": 8})
    run_engine(run_dir)
    first = final_weights(run_dir, "")
    change_by_flags(run_dir, [("ema.decay", "0.999999"), ("limits.max_steps", "9"), ("training.lr", "1e-9")])
    run_engine(run_dir)
    averaged = final_weights(run_dir, "_ema")
    assert averaged.keys() == first.keys()
    for name, weight in first.items():
        torch.testing.assert_close(averaged[name], weight, rtol=0, atol=1e-6, msg=name)


def final_weights(run_dir: RunDir, ending: str) -> dict[str, torch.Tensor]:
    """The latest checkpoint's model or adapter, plain or averaged."""
    checkpoint = run_dir.latest_checkpoint()
    assert checkpoint is not None
    paths = (checkpoint / f"{kind}{ending}.safetensors" for kind in ("model", "adapter"))
    (path,) = filter(Path.exists, paths)
    return {name: tensor.clone() for name, tensor in open_weights(path).items()}


def test_a_resumed_run_holds_no_file_of_the_checkpoint_it_came_from(
    make_run: Callable[..., RunDir],
) -> None:
    """Retired files would fill the disk for as long as they are mapped."""
    run_dir = make_run(ema={"decay": 0.9, "device": "cpu"}, limits={"max_steps": 2})
    run_engine(run_dir)
    parts = build(run_dir.read_config(), Ranks())
    latest = run_dir.latest_checkpoint()
    assert latest is not None
    load(latest, parts.state)
    mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(run_dir.path) in line]
    assert not mapped


def test_a_finished_run_leaves_its_last_checkpoint_unchanged(make_run: Callable[..., RunDir]) -> None:
    """Writing it again would leave none for a moment."""
    run_dir = make_run(limits={"max_steps": 2}, checkpoint={"keep_last": 1})
    run_engine(run_dir)
    before = run_dir.checkpoint_dir(2).stat().st_ino
    run_engine(run_dir)
    assert run_dir.checkpoint_dir(2).stat().st_ino == before


@pytest.mark.parametrize(
    ("limits", "raised"),
    [
        ({"max_steps": 4}, ("limits.max_steps", "6")),
        ({"max_epochs": 1}, ("limits.max_epochs", "2")),
        ({"max_minutes": 1e-4}, ("limits.max_minutes", "0.1")),
    ],
    ids=["steps", "epochs", "minutes"],
)
def test_a_resume_without_steps_left_names_the_limit_to_raise(
    make_run: Callable[..., RunDir], limits: dict[str, Any], raised: tuple[str, str]
) -> None:
    run_dir = make_run(limits={"max_steps": None, **limits})
    run_engine(run_dir)
    done = len(losses(run_dir))
    run_engine(run_dir)
    (warning,) = [event for event in read_events(run_dir.events_jsonl) if event["kind"] == "warning"]
    assert f"at step {done} the run has reached {raised[0]}." in warning["message"]
    assert warning["hint"] == f"Raise {raised[0]} to train on."
    assert len(losses(run_dir)) == done
    change_by_flags(run_dir, [raised, ("limits.max_steps", str(done + 2))])
    run_engine(run_dir)
    assert sorted(losses(run_dir)) == list(range(1, done + 3))


@pytest.mark.parametrize("method", ["full", "rotation", "lora"])
def test_a_checkpoint_of_the_first_version_is_resumed(make_run: Callable[..., RunDir], method: str) -> None:
    """Written here by the packages of its files: safetensors, torch, json."""
    sections = METHODS[method] | {"limits": {"max_steps": 6}}
    whole = make_run("whole", **sections)
    run_engine(whole)
    old = make_run("old", **sections | {"limits": {"max_steps": 3}})
    run_engine(old)
    newest = old.latest_checkpoint()
    assert newest is not None
    kind = "adapter" if method == "lora" else "model"
    written = {f"{kind}.safetensors", f"{kind}_ema.safetensors"}
    states = {"trainer.json", "optimizer.pt", "ema.safetensors"}
    states |= {"weights.safetensors"} if method == "lora" else set()
    assert {path.name for path in newest.rglob("*") if path.is_file()} == written | states
    for path in newest.rglob("*.safetensors"):
        save_file(load_file(path), path)
    position = json.loads((newest / "state" / "trainer.json").read_text())
    position["turn"] = position.pop("rotation")
    (newest / "state" / "trainer.json").write_text(json.dumps(position))
    optimizer = torch.load(newest / "state" / "optimizer.pt", weights_only=True)
    assert set(optimizer) == {"optimizer", "parked"}
    assert all(set(kept) == {"step", "exp_avg", "exp_avg_sq"} for kept in optimizer["optimizer"].values())
    torch.save(optimizer, newest / "state" / "optimizer.pt")
    change_by_flags(old, [("limits.max_steps", "6")])
    run_engine(old)
    assert losses(old) == losses(whole)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "rotation", "lora"])
def test_a_run_killed_at_random_moments_loses_nothing(
    make_run: Callable[..., RunDir], method: str, record_property: Callable[[str, object], None]
) -> None:
    """kill -9, wherever it hits: while loading, in a step, in a preview, in the middle of a save."""
    sections = METHODS[method] | {"inference": PREVIEW, "limits": {"max_steps": STEPS}}
    sections["training"] = {"save_every": 1, **METHODS[method].get("training", {})}
    whole = make_run("whole", **sections)
    run_engine(whole)
    killed = make_run("killed", **sections)
    seed = int.from_bytes(os.urandom(4))
    record_property("seed", seed)
    draw = random.Random(seed)
    kills = 0
    for _ in range(8):
        process = start_engine(killed)
        wait_for_first_step(killed, process)
        time.sleep(draw.uniform(0, 1.0))
        process.send_signal(signal.SIGKILL)
        status = process.wait()
        assert status in (0, -signal.SIGKILL), process.output()
        kills += status != 0
        if status == 0:
            break
    assert kills > 0, f"seed {seed}: the run was over before the first kill"
    assert start_engine(killed).wait() == 0
    assert_same_run(whole, killed)


def wait_for_first_step(run_dir: RunDir, process: ForkedProcess) -> None:
    """Until this process has made a step: kills while it loads would never let it get anywhere."""
    events: Path = run_dir.events_jsonl
    size = events.stat().st_size if events.exists() else 0
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        if events.exists() and b'"kind": "step"' in events.read_bytes()[size:]:
            return
        time.sleep(0.01)
