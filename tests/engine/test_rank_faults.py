"""Faults of several ranks: a clear event, within a bounded time, and a run that can be resumed."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from flowloom.engine.__main__ import run_engine, run_on
from flowloom.engine.parallel import ranks
from flowloom.engine.stopping import StopSignals
from flowloom.errors import RankError
from flowloom.run.directory import RunDir
from flowloom.run.events import read_events
from flowloom.run.process import FAILED, main
from flowloom.run.resume import change_by_flags
from tests.engine.processes import (
    ForkedProcess,
    free_port,
    rank_environment,
    run_on_ranks,
    start_engine,
)


def last_event(run_dir: RunDir) -> dict[str, Any]:
    return list(read_events(run_dir.events_jsonl))[-1]


@pytest.mark.slow
def test_if_a_rank_is_killed_the_other_says_so_and_the_run_resumes(make_run: Callable[..., RunDir]) -> None:
    run_dir = make_run(training={"save_every": 2, "lr": 1e-3}, limits={"max_steps": 100_000})
    port = free_port()
    first, second = (start_engine(run_dir, rank_environment(rank, 2, port)) for rank in (0, 1))
    deadline = time.monotonic() + 200
    while run_dir.latest_checkpoint() is None:
        assert first.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    second.send_signal(signal.SIGKILL)
    second.wait(20)
    # As torchrun does.
    first.send_signal(signal.SIGTERM)
    assert first.wait(60) == FAILED
    event = last_event(run_dir)
    assert (event["kind"], event["error"]) == ("failed", "RankError")
    assert "Another rank of this run ended" in event["message"]
    assert "The last good checkpoint is step_" in event["hint"]
    step = int(run_dir.checkpoints()[-1].name.removeprefix("step_"))
    change_by_flags(run_dir, [("limits.max_steps", str(step + 1))])
    run_engine(run_dir)
    assert (last_event(run_dir)["kind"], last_event(run_dir)["step"]) == ("finished", step + 1)


def impatient_engine(run_dir: str) -> int:
    ranks.JOIN_PATIENCE = timedelta(seconds=1)
    sys.argv = ["flowloom.engine", run_dir]
    return main("flowloom.engine", run_engine)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_never_starts_is_waited_for_in_a_bounded_time(
    make_run: Callable[..., RunDir], rank: int
) -> None:
    run_dir = make_run()
    process = ForkedProcess(
        impatient_engine, str(run_dir.path), environ=rank_environment(rank, 2, free_port())
    )
    assert process.wait(60) == FAILED
    assert f"Rank {rank} waited 1 s for all 2 ranks at 127.0.0.1" in process.output()
    assert "Start all machines with the same address" in process.output()
    events = list(read_events(run_dir.events_jsonl))
    assert [event["kind"] for event in events] == (["failed"] if rank == 0 else [])


def train_on_two_machines(folder: str, *run_dirs: str) -> int:
    """Rank R works in the folder `folder`/R, and rank 1 with another learning rate in the last run."""
    joined = ranks.join_ranks("cpu")
    os.chdir(Path(folder) / str(joined.rank))
    for path in run_dirs:
        run_dir = RunDir(Path(path))
        config = run_dir.read_config()
        if joined.rank and path == run_dirs[-1]:
            training = config.training.model_copy(update={"lr": 2e-3})
            config = config.model_copy(update={"training": training})
        with StopSignals().listening() as signals, pytest.raises(RankError, match="differs between rank 0"):
            run_on(joined, run_dir, config, signals)
    ranks.leave_ranks(joined)
    return 0


@pytest.mark.slow
def test_ranks_that_see_different_files_do_not_train(
    make_run: Callable[..., RunDir], synthetic_data: Path, tiny_family: Any, tmp_path: Path
) -> None:
    """Each rank resolves /proc/self/cwd to a separate folder, as machines with separate disks would."""
    rows = (synthetic_data / "data.jsonl").read_text()
    for rank in (0, 1):
        machine = tmp_path / str(rank)
        machine.mkdir()
        (machine / "rows.jsonl").write_text(rows if rank == 0 else rows.replace("red, bar", "red, line"))
    weights = tmp_path / "0" / "network.safetensors"
    shutil.copy(tiny_family.chroma_path, weights)
    run_dirs = [
        make_run("rows", dataloader={"jsonl_metadata_path": "/proc/self/cwd/rows.jsonl"}),
        make_run("network", model={"chroma_path": "/proc/self/cwd/network.safetensors"}),
        make_run("configuration"),
    ]
    paths = [str(run_dir.path) for run_dir in run_dirs]
    assert run_on_ranks(train_on_two_machines, [str(tmp_path), *paths], 2) == 0
    for run_dir, what in zip(
        run_dirs, ("/cwd/rows.jsonl", "/cwd/network.safetensors", "run.json"), strict=True
    ):
        event = last_event(run_dir)
        assert (event["kind"], event["error"]) == ("failed", "RankError")
        assert f"{what} differs between rank 0 on " in event["message"]
        assert "Give all ranks the same files" in event["message"]
    assert "No such file" in last_event(run_dirs[1])["message"]
