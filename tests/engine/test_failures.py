"""A run that fails says why in one line, names the last good checkpoint, and keeps no bad one."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from flowloom.engine.__main__ import run_engine
from flowloom.engine.build import build
from flowloom.engine.finite import not_finite
from flowloom.engine.parallel.ranks import Ranks
from flowloom.engine.snapshot import numbers_of
from flowloom.errors import (
    CheckpointError,
    CompileError,
    DivergedError,
    TrainingError,
    WeightsError,
    disk_full,
    one_line,
    size_text,
)
from flowloom.models.weights import open_weights, save_weights
from flowloom.run.directory import RunDir
from flowloom.run.events import read_events
from flowloom.run.resume import change_by_flags
from tests.engine.processes import start_engine

OVERFLOW = [("training.lr", "3.3e38"), ("training.weight_decay", "1"), ("training.warmup_steps", "0")]
"""The loss of the step is finite, the weights after it are not."""


def failed(run_dir: RunDir) -> dict[str, Any]:
    return [event for event in read_events(run_dir.events_jsonl) if event["kind"] == "failed"][-1]


def names(run_dir: RunDir) -> list[str]:
    return [folder.name for folder in run_dir.checkpoints()]


def test_weights_that_are_not_finite_are_never_saved(make_run: Callable[..., RunDir]) -> None:
    run_dir = make_run(training={"save_every": 1}, ema={"decay": 0.9}, limits={"max_steps": 2})
    run_engine(run_dir)
    change_by_flags(run_dir, [*OVERFLOW, ("limits.max_steps", "9")])
    with pytest.raises(DivergedError, match="not saved"):
        run_engine(run_dir)
    assert names(run_dir) == ["step_00000001", "step_00000002"]
    assert "step_00000002" in failed(run_dir)["hint"]
    change_by_flags(
        run_dir, [("training.lr", "1e-3"), ("training.weight_decay", "0"), ("limits.max_steps", "3")]
    )
    run_engine(run_dir)
    assert names(run_dir)[-1] == "step_00000003"


def test_a_failure_before_the_first_checkpoint_says_that_nothing_was_saved(
    make_run: Callable[..., RunDir],
) -> None:
    run_dir = make_run(training={"save_every": 1, "lr": 3.3e38, "weight_decay": 1.0, "warmup_steps": 0})
    with pytest.raises(DivergedError):
        run_engine(run_dir)
    said = failed(run_dir)
    assert "No checkpoint was saved" in said["hint"]
    assert "checkpoint" not in said["message"]
    assert names(run_dir) == []


def with_nan(source: Path, target: Path, name: str) -> Path:
    """A copy of weights in which one number of `name` is a NaN."""
    opened = open_weights(source)
    tensors = {key: tensor.clone() for key, tensor in opened.items()}
    tensors[name].view(-1)[0] = float("nan")
    save_weights(target, tensors, opened.metadata)
    return target


@pytest.mark.parametrize("sections", [{}, {"lora": {"rank": 2, "alpha": 2}}], ids=["full", "lora"])
def test_a_base_with_a_nan_is_named_when_the_first_loss_is_none(
    make_run: Callable[..., RunDir], tiny_family: Any, tmp_path: Path, sections: dict[str, Any]
) -> None:
    run_dir = make_run(**sections)
    base = with_nan(tiny_family.chroma_path, tmp_path / "base.safetensors", "img_in.weight")
    change_by_flags(run_dir, [("model.chroma_path", str(base))])
    with pytest.raises(WeightsError, match=r"base\.safetensors: its weight img_in\.weight holds a NaN"):
        run_engine(run_dir)
    assert "No checkpoint was saved" in failed(run_dir)["hint"]


@pytest.mark.parametrize("cache", ["off", "memory", "disk"])
@pytest.mark.parametrize("encoder", ["vae", "t5"])
def test_an_encoder_that_gives_a_nan_is_named(
    make_run: Callable[..., RunDir], own_encoders: dict[str, str], tmp_path: Path, encoder: str, cache: str
) -> None:
    kept = {"latents": cache, "text": cache, "dir": str(tmp_path / "cache")}
    run_dir = make_run(model=own_encoders, cache=kept)
    path = Path(own_encoders[f"{encoder}_path"])
    file = path / "model.safetensors" if path.is_dir() else path
    ends = "encoder.conv_in.weight", "DenseReluDense.wo.weight"
    name = next(name for name in open_weights(file) if name.endswith(ends))
    with_nan(file, tmp_path / "spoilt.safetensors", name).replace(file)
    with pytest.raises(WeightsError, match="holds a NaN or an infinity"):
        run_engine(run_dir)
    assert failed(run_dir)["message"].startswith(str(path))


@pytest.mark.parametrize("then", ["copied", "renamed"])
def test_a_checkpoint_under_another_name_is_refused(make_run: Callable[..., RunDir], then: str) -> None:
    """A copy under a later name would stay the newest: each resume would train the same steps again."""
    run_dir = make_run(training={"save_every": 1}, limits={"max_steps": 2})
    run_engine(run_dir)
    newest, other = run_dir.checkpoint_dir(2), run_dir.checkpoint_dir(99)
    shutil.copytree(newest, other) if then == "copied" else newest.rename(other)
    change_by_flags(run_dir, [("limits.max_steps", "3")])
    with pytest.raises(CheckpointError, match="of step 2"):
        run_engine(run_dir)
    hint = failed(run_dir)["hint"]
    assert hint.startswith(
        "It is a copy of step_00000002" if then == "copied" else "Rename it to step_00000002"
    )
    shutil.rmtree(other) if then == "copied" else other.rename(newest)
    run_engine(run_dir)
    steps = [event["step"] for event in read_events(run_dir.events_jsonl) if event["kind"] == "step"]
    assert steps == [1, 2, 3]


@pytest.mark.parametrize("sections", [{}, {"lora": {"rank": 2, "alpha": 2}}], ids=["full", "lora"])
@pytest.mark.parametrize("spoilt", ["weights", "average", "moments", "parked"])
def test_a_nan_anywhere_in_a_checkpoint_is_found(
    make_config: Callable[..., Any], sections: dict[str, Any], spoilt: str
) -> None:
    state = build(make_config(**sections, ema={"decay": 0.9}), Ranks()).state
    for weight in state.trained.values():
        weight.grad = torch.zeros_like(weight)
    state.optimizer.step()
    assert not_finite(numbers_of(state)) is None
    name = list(state.trained)[-1]
    holders = {
        "weights": state.trained[name].data,
        "average": state.ema.shadow[name] if state.ema else None,
        "moments": state.optimizer.state[state.trained[name]]["exp_avg_sq"],
        "parked": state.parked.setdefault(name, {"exp_avg": torch.zeros(2)})["exp_avg"],
    }
    holder = holders[spoilt]
    assert holder is not None
    holder.view(-1)[-1] = float("nan")
    assert name in (not_finite(numbers_of(state)) or "")


def test_a_checkpoint_with_a_nan_is_refused_and_the_last_good_one_is_named(
    make_run: Callable[..., RunDir],
) -> None:
    """As versions before this one saved them."""
    run_dir = make_run(training={"save_every": 1}, limits={"max_steps": 2})
    run_engine(run_dir)
    path = run_dir.checkpoint_dir(2) / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in open_weights(path).items()}
    tensors["img_in.weight"][0, 0] = float("nan")
    save_weights(path, tensors, {})
    with pytest.raises(CheckpointError, match=r"img_in\.weight"):
        run_engine(run_dir)
    said = failed(run_dir)
    assert "step_00000002" in said["message"]
    assert "continues from step_00000001" in said["hint"]
    shutil.rmtree(run_dir.checkpoint_dir(2))
    run_engine(run_dir)
    assert names(run_dir)[-1] == "step_00000002"


@pytest.mark.parametrize("file", ["optimizer.pt", "trainer.json", "../model.safetensors"])
@pytest.mark.parametrize("harm", ["missing", "cut"])
def test_the_hint_for_a_damaged_checkpoint_agrees_with_its_message(
    make_run: Callable[..., RunDir], file: str, harm: str
) -> None:
    run_dir = make_run(training={"save_every": 1}, limits={"max_steps": 2})
    run_engine(run_dir)
    path = run_dir.checkpoint_dir(2) / "state" / file
    if harm == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(CheckpointError, match="incomplete or damaged"):
        run_engine(run_dir)
    said = failed(run_dir)
    assert said["hint"].startswith(f"Delete {run_dir.checkpoint_dir(2)}, then ")
    assert "continues from step_00000001" in said["hint"]


def test_an_unexpected_error_is_one_line_and_the_log_has_all_of_it(make_run: Callable[..., RunDir]) -> None:
    run_dir = make_run(limits={"max_steps": 3})

    def fail(event: dict[str, Any]) -> None:
        if event["kind"] == "step":
            raise ValueError("a first line\n" + "and more of it\n" * 7000)

    with pytest.raises(TrainingError, match="ValueError: a first line"):
        run_engine(run_dir, fail)
    said = failed(run_dir)
    assert said["error"] == "ValueError"
    assert "\n" not in said["message"]
    assert len(said["message"]) < 400
    assert run_dir.log_txt.read_text().count("and more of it") >= 7000


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # the compiler's own
def test_a_compiler_that_fails_is_reported_in_one_line(
    make_run: Callable[..., RunDir], tmp_path: Path
) -> None:
    compiler = tmp_path / "g++"
    compiler.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && echo "g++ 12.2.0" && exit 0\n'
        'for i in $(seq 2000); do echo "note: in some template $i" >&2; done\n'
        'echo "main.cpp:3:10: fatal error: omp.h: No such file" >&2\nexit 1\n'
    )
    compiler.chmod(0o755)
    run_dir = make_run(memory={"compile": True}, limits={"max_steps": 2})
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "CXX": str(compiler),
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor"),
    }
    command = [sys.executable, "-m", "flowloom.engine", str(run_dir.path)]
    process = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert process.returncode == 2
    said = failed(run_dir)
    assert said["error"] == CompileError.__name__
    assert "fatal error: omp.h" in said["message"]
    assert "memory.compile" in said["message"]
    assert "\n" not in said["message"]
    assert len(said["message"]) < 800
    assert len(process.stderr) < 5000, process.stderr
    assert len(run_dir.log_txt.read_text()) > 1000


def test_a_full_disk_is_reported_with_the_numbers(tmp_path: Path) -> None:
    message = str(disk_full(tmp_path / "adapter.safetensors", OSError(errno.ENOSPC, "full"), 300_000))
    assert "the disk is full (293.0 KiB needed, " in message
    assert size_text(shutil.disk_usage(tmp_path).free).split(".")[0] in message
    limit = str(disk_full(tmp_path / "adapter.safetensors", OSError(errno.EFBIG, "limit"), 300_000))
    assert "free" not in limit
    assert "disk is full" not in limit


@pytest.mark.parametrize(
    ("text", "line"), [("", ""), ("\n \n  one \ntwo", "one"), ("x" * 1000, "x" * 397 + "...")]
)
def test_one_line_of_a_text(text: str, line: str) -> None:
    assert one_line(text) == line


@pytest.mark.parametrize("then", ["deleted", "moved", "replaced"])
def test_a_run_whose_folder_is_gone_ends(make_run: Callable[..., RunDir], then: str) -> None:
    run_dir = make_run(training={"save_every": 3}, limits={"max_steps": 1_000_000})
    process = start_engine(run_dir)
    deadline = time.monotonic() + 60
    while not run_dir.latest_checkpoint():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    run_dir.path.rename(run_dir.path.with_name("elsewhere"))
    if then == "deleted":
        shutil.rmtree(run_dir.path.with_name("elsewhere"))
    if then == "replaced":
        again = make_run(limits={"max_steps": 1})
        run_engine(again)
        left = sorted(path for path in again.path.rglob("*"))
    assert process.wait(120) == 2
    complaint = process.output()
    assert str(run_dir.path) in complaint
    assert "Training stops" in complaint
    assert "Traceback" not in complaint
    if then == "replaced":
        assert sorted(path for path in again.path.rglob("*")) == left  # pyright: ignore[reportPossiblyUnboundVariable]
    else:
        assert not run_dir.path.exists()
