"""The results of a run of any trainer are found, and no file that is still being written."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path

import pytest

from flowloom.run.directory import RunDir
from flowloom.run.results import checkpoints_of, is_complete, last_saved_step, newest_file_time, samples_of

HEADER = json.dumps(
    {"__metadata__": {}, "w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}
).encode()
WHOLE = len(HEADER).to_bytes(8, "little") + HEADER + b"\0" * 16


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    """An empty run."""
    found = RunDir.create("run", tmp_path / "runs")
    found.run_json.write_text(json.dumps({"config": {}, "created": 1000.0}))
    return found


def written(path: Path, data: bytes, at: float = 2000.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    os.utime(path, (at, at))
    return path


@pytest.mark.parametrize("length", range(0, len(WHOLE) + 1, 3))
def test_weights_are_complete_only_with_their_last_byte(tmp_path: Path, length: int) -> None:
    path = written(tmp_path / "w.safetensors", WHOLE[:length])
    assert is_complete(path) == (length == len(WHOLE))


def test_a_pickle_is_complete_when_its_archive_is_and_is_never_opened(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", "not even a pickle " * 100)
    assert is_complete(path)
    path.write_bytes(path.read_bytes()[:-30])
    assert not is_complete(path)
    assert not is_complete(tmp_path / "nothing.pth")


@pytest.mark.parametrize("data", [b"", b"\xff" * 40, (2).to_bytes(8, "little") + b"[]", b"\0" * 8])
def test_files_that_are_no_weights_are_not_complete(tmp_path: Path, data: bytes) -> None:
    assert not is_complete(written(tmp_path / "w.sft", data))


def test_checkpoints_come_newest_first_and_kohyas_and_flows_files_as_well(run_dir: RunDir) -> None:
    folder = run_dir.path / "checkpoints"
    for number in (100, 200):
        run_dir.checkpoint_dir(number).mkdir(parents=True)
    written(folder / "fox-000001.safetensors", WHOLE, 3000)
    written(folder / "fox.safetensors", WHOLE, 4000)
    written(folder / "fox-torn.safetensors", WHOLE[:-1], 5000)
    for name in ("training_config.json", "step_00000300.tmp/x", "sample/a.png", "old.removed.tmp"):
        written(folder / name, b"{}")
    names = [path.name for path in checkpoints_of(run_dir)]
    assert names == ["step_00000200", "step_00000100", "fox.safetensors", "fox-000001.safetensors"]


def test_in_a_folder_of_the_user_only_what_is_newer_than_the_run_counts(
    run_dir: RunDir, tmp_path: Path
) -> None:
    out, none = str(tmp_path / "out"), str(tmp_path / "none")
    written(tmp_path / "out" / "of-another-run.safetensors", WHOLE, 999)
    folders = {"checkpoints": newest_file_time(out), "samples": newest_file_time(none)}
    assert folders == {"checkpoints": {out: 999.0}, "samples": {none: 0.0}}
    run_dir.run_json.write_text(json.dumps({"config": {}, "folders": folders}))
    mine = written(tmp_path / "out" / "mine.safetensors", WHOLE, 1001)
    assert checkpoints_of(run_dir) == [mine]
    assert list(samples_of(run_dir)) == []


def test_samples_are_those_of_all_trainers_but_not_the_passing_ones(run_dir: RunDir) -> None:
    kept = [
        run_dir.path / "samples" / "step_00000100" / "00.png",
        run_dir.path / "samples" / "99.jpg",
        run_dir.path / "checkpoints" / "sample" / "fox_000100_00_20260101120000_42.png",
    ]
    passing = [
        run_dir.path / "samples" / "step_99_temp" / "config0_prompt0_rank0.jpg",
        run_dir.path / "samples" / "step_00000200.tmp" / "00.png",
        run_dir.path / "samples" / "prompt.txt",
    ]
    for path in (*kept, *passing):
        written(path, b"x")
    assert {path for _, path in samples_of(run_dir)} == set(kept)


def test_the_step_of_the_newest_checkpoint_is_what_the_events_say(run_dir: RunDir) -> None:
    assert last_saved_step(run_dir) is None
    lines = [
        {"seq": i, "time": 1.0, "kind": "saved", "step": step, "dir": "x"} for i, step in enumerate((5, 9))
    ]
    run_dir.events_jsonl.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert last_saved_step(run_dir) == 9
