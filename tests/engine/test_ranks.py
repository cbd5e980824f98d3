"""Several ranks, started by torchrun, train one network on all rows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from flowloom.spec.events import read_events
from flowloom.spec.rundir import RunDir


@pytest.mark.slow
def test_two_ranks_train_every_row_once_and_stop_together(make_run: Callable[..., RunDir]) -> None:
    """Of the 14 wide pictures the last is alone in its batch: one rank has nothing of it."""
    run_dir = make_run(
        limits={"max_steps": None, "max_epochs": 1},
        training={"updates_per_large_batch": 2},
        dataloader={"batch_size": 13},
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.run(
        [*command, "-m", "flowloom.engine", str(run_dir.path)],
        env=environment, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    checkpoint = run_dir.latest_checkpoint()
    assert checkpoint is not None
    position = json.loads((checkpoint / "state" / "trainer.json").read_text())
    assert (position["epoch"], position["batch"]) == (1, 0)
    assert list(read_events(run_dir.events_jsonl))[-1]["kind"] == "finished"
