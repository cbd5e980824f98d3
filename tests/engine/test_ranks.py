"""Several ranks, started by torchrun, train one network on all rows."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flowloom.run.directory import RunDir
from flowloom.run.events import read_events


def run_on_two_ranks(run_dir: RunDir) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.run(
        [*command, "-m", "flowloom.engine", str(run_dir.path)],
        env=environment, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    events = list(read_events(run_dir.events_jsonl))
    assert events[-1]["kind"] == "finished"
    return events


@pytest.mark.slow
def test_two_ranks_train_every_row_once_and_stop_together(make_run: Callable[..., RunDir]) -> None:
    """Of the 14 wide images the last is alone in its batch: one rank has nothing of it."""
    run_dir = make_run(
        limits={"max_steps": None, "max_epochs": 1},
        training={"updates_per_large_batch": 2},
        dataloader={"batch_size": 13},
    )
    run_on_two_ranks(run_dir)
    checkpoint = run_dir.latest_checkpoint()
    assert checkpoint is not None
    position = json.loads((checkpoint / "state" / "trainer.json").read_text())
    assert (position["epoch"], position["batch"]) == (1, 0)
    assert position["samples"] == 22


@pytest.mark.slow
def test_rows_that_any_rank_leaves_out_are_reported(
    make_run: Callable[..., RunDir], synthetic_data: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "pictures"
    shutil.copytree(synthetic_data, folder)
    broken = [2, 5, 9, 14, 17, 21]
    for number in broken:
        (folder / f"{number:02d}.png").write_bytes(b"no picture")
    run_dir = make_run(
        limits={"max_steps": None, "max_epochs": 1, "skipped_percentage": 0.5},
        dataloader={
            "batch_size": 8,
            "jsonl_metadata_path": str(folder / "data.jsonl"),
            "image_folder_path": str(folder),
        },
    )
    skipped = [event["line"] for event in run_on_two_ranks(run_dir) if event["kind"] == "skipped"]
    assert sorted(skipped) == [number + 1 for number in broken]
