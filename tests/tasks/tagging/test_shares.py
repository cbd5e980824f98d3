"""Tagging by several ranks, as torchrun starts them: every image once, one writer, and restartable."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from flowloom.run.directory import RunDir
from flowloom.tasks.restore_captions import CHANGES
from flowloom.tasks.tagging.image_sets import Target
from flowloom.tasks.tagging.shares import Shares
from tests.engine.processes import ForkedProcess, free_port, rank_environment
from tests.server.conftest import wait_for
from tests.tasks.tagging.conftest import BLUE, GREEN, RED, Runs, events_of, paint

NUM_IMAGES = 300


def test_each_image_is_in_one_share_and_stays_there():
    targets = [Target(f"{i}.png", (f"{i}.txt",)) for i in range(100)]
    shares = [Shares(rank, 3).own(targets) for rank in range(3)]
    assert sorted(target.name for share in shares for target in share) == sorted(t.name for t in targets)
    assert min(map(len, shares)) > 20
    assert Shares(1, 3).own(targets[50:]) == [target for target in shares[1] if target in targets[50:]]


def _task(run_dir: str) -> int:
    from flowloom.run.process import main
    from flowloom.tasks.__main__ import run_task

    sys.argv = ["flowloom.tasks", run_dir]
    return main("flowloom.tasks", run_task)


def start(run_dir: RunDir, num_ranks: int) -> list[ForkedProcess]:
    """The run on so many ranks."""
    port = free_port()
    return [
        ForkedProcess(_task, str(run_dir.path), environ=rank_environment(rank, num_ranks, port))
        for rank in range(num_ranks)
    ]


def journaled(run_dir: RunDir) -> list[str]:
    """The places in all journals."""
    lines = [line for path in run_dir.path.glob("captions*.jsonl") for line in path.read_text().splitlines()]
    return [json.loads(line)["place"] for line in lines if line.endswith("}")]


@pytest.mark.slow
@pytest.mark.parametrize("form", ["folder", "jsonl"])
def test_ranks_describe_every_image_once_also_after_one_was_killed(
    runs: Runs, tagger: Path, tmp_path: Path, form: str
):
    colours = {f"p{i:03d}": (RED, GREEN, BLUE)[i % 3] for i in range(NUM_IMAGES)}
    folder = paint(tmp_path / "many", **colours)
    (folder / "p001.png").write_bytes(b"no image")
    data = folder
    if form == "jsonl":
        data = folder / "rows.jsonl"
        rows = ({"filename": f"{name}.png", "caption_or_tags": ""} for name in colours)
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def captions() -> Any:
        if form == "jsonl":
            return data.read_text()
        return {path.name: path.read_text() for path in folder.glob("*.txt")}

    before = captions()
    config = {"data_path": str(data), "model_path": str(tagger), "batch_size": 2}
    run_dir = runs.new("tag", **config)
    first, second = start(run_dir, 2)
    wait_for(lambda: len(list(run_dir.path.glob("captions.rank1.jsonl"))) and len(journaled(run_dir)) > 20)
    second.send_signal(signal.SIGKILL)
    assert first.wait(60) == 2, first.output()
    assert "Another rank ended" in events_of(run_dir, "failed")[-1]["message"]
    done = len(journaled(run_dir))
    assert done < NUM_IMAGES - 1, "killed too late for the test"
    # On another number of ranks; the journals of the first attempt are merged.
    processes = start(run_dir, 3)
    assert [process.wait(120) for process in processes] == [0, 0, 0], processes[0].output()
    assert [path.name for path in run_dir.path.glob("captions*.jsonl")] == [CHANGES]
    places = journaled(run_dir)
    assert len(places) == len(set(places)) == NUM_IMAGES - 1
    result = json.loads((run_dir.path / "result.json").read_text())
    assert (result["num_images"], result["num_written"], result["num_unusable"]) == (
        NUM_IMAGES, NUM_IMAGES - 1, 1,
    )  # fmt: skip
    assert result["model"]["processes"] == 3
    assert len(events_of(run_dir, "finished")) == 1
    by_ranks = captions()
    undo = {"data_path": str(data), "run_path": str(run_dir.path)}
    assert runs("restore-captions", **undo)["num_restored"] == NUM_IMAGES - 1
    assert captions() == before
    runs("tag", **config)
    assert captions() == by_ranks, "as one process writes them"


@pytest.mark.slow
def test_a_stop_request_ends_all_ranks_and_an_undo_covers_journals_that_are_not_merged(
    runs: Runs, tagger: Path, tmp_path: Path
):
    folder = paint(tmp_path / "many", **{f"p{i:03d}": BLUE for i in range(NUM_IMAGES)})
    run_dir = runs.new("tag", data_path=str(folder), model_path=str(tagger), batch_size=1)
    processes = start(run_dir, 2)
    wait_for(lambda: len(list(folder.glob("*.txt"))) > 5)
    run_dir.request("stop")
    assert [process.wait(60) for process in processes] == [0, 0], processes[0].output()
    assert len(events_of(run_dir, "stopped")) == 1
    assert not (run_dir.control_dir / "stop").exists()
    done = len(list(folder.glob("*.txt")))
    assert 0 < done < NUM_IMAGES
    # As a kill leaves it.
    (run_dir.path / CHANGES).rename(run_dir.path / "captions.rank0.jsonl")
    (run_dir.path / CHANGES).touch()
    undo = {"data_path": str(folder), "run_path": str(run_dir.path)}
    assert runs("restore-captions", **undo)["num_restored"] == done
    assert not list(folder.glob("*.txt"))
