"""A process that is killed while it writes captions loses none: the next one finishes or undoes its work."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
from PIL import Image

from flowloom.server.datasets.edit_lock import EditLock
from flowloom.server.datasets.edits import Editor
from flowloom.server.datasets.index import Index
from flowloom.server.datasets.locations import Dataset
from flowloom.tasks import ALL
from tests.fakes.onnx_tagger import write_tagger
from tests.tasks.tagging.conftest import Runs

Kind = Literal["folder", "jsonl"]
COUNT = 60
KILLED = """
import os, runpy, signal, sys
data, num_left, module, *sys.argv[1:] = sys.argv[1:]
replace = os.replace

def replace_or_die(source, target, **more):
    global num_left
    if str(target).startswith(data):
        num_left = int(num_left) - 1
        if num_left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
    return replace(source, target, **more)

os.replace = replace_or_die
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


def killed(data: Path, num_written: int, module: str, *args: object) -> None:
    """Run `module` in a process that is killed before it puts file number `num_written` below `data`."""
    command = [sys.executable, "-c", KILLED, str(data), str(num_written), module, *map(str, args)]
    assert subprocess.run(command, env=os.environ).returncode == -signal.SIGKILL


@pytest.fixture(params=["folder", "jsonl"])
def dataset(tmp_path: Path, request: pytest.FixtureRequest) -> Dataset:
    """Images that all have a caption, in files or in rows."""
    folder = tmp_path / "fox"
    folder.mkdir()
    names = [f"{number:03}" for number in range(COUNT)]
    for number, name in enumerate(names):
        Image.new("RGB", (20, 20), (255, number, 0)).save(folder / f"{name}.png")
    kind: Kind = request.param
    if kind == "folder":
        for number, name in enumerate(names):
            (folder / f"{name}.txt").write_bytes(b"fox, caf\xc3\xa9" + b"\r\n" * (number % 3))
        return Dataset("fox", kind, folder)
    row = {"caption_or_tags": "fox, café", "width": 20, "height": 20, "note": [1.50, "x"]}
    lines = [json.dumps({"filename": f"{name}.png", **row}) + "\r\n" for name in names]
    (folder / "rows.jsonl").write_bytes("".join(lines).encode())
    return Dataset("fox", kind, folder / "rows.jsonl")


@pytest.fixture
def held(dataset: Dataset) -> Callable[[], dict[str, bytes]]:
    """Everything beside the images, by name."""
    folder = dataset.path if dataset.kind == "folder" else dataset.path and dataset.path.parent
    assert folder
    return lambda: {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".png"}


def editor_of(dataset: Dataset, state_dir: Path) -> Editor:
    return Editor(Index(dataset, state_dir), EditLock())


def num_written(dataset: Dataset) -> int:
    """Before the kill; of a JSONL, written as a whole, nothing."""
    return 25 if dataset.kind == "folder" else 0


def test_an_edit_that_was_killed_is_undone_to_the_last_byte(
    tmp_path: Path, dataset: Dataset, held: Callable[[], dict[str, bytes]]
):
    before = held()
    killed(tmp_path / "fox", num_written(dataset), __name__, dataset.kind, dataset.path, tmp_path / "state")
    changed = [name for name, data in held().items() if data != before.get(name)]
    # Captions are put in place by several threads; those that the kill found at work left their copies.
    assert len([name for name in changed if not name.startswith(".")]) >= num_written(dataset)
    editor = editor_of(dataset, tmp_path / "state")
    (edit,) = editor.edits()
    undone = editor.undo(edit.id, is_partial=False)
    assert undone.changed_meanwhile == ()
    assert {name: data for name, data in held().items() if not name.startswith(".")} == before


def test_an_undo_that_was_killed_is_finished_by_the_next(
    tmp_path: Path, dataset: Dataset, held: Callable[[], dict[str, bytes]]
):
    before = held()
    args = dataset.kind, dataset.path, tmp_path / "state"
    subprocess.run([sys.executable, "-m", __name__, *map(str, args)], check=True)
    editor = editor_of(dataset, tmp_path / "state")
    (edit,) = editor.edits()
    after = held()
    assert after != before
    killed(tmp_path / "fox", num_written(dataset), __name__, *args, edit.id)
    undone = editor.undo(edit.id, is_partial=False)
    assert held() == before, "and nothing is left of the process that was killed"
    editor.undo(undone.id, is_partial=False)
    redone = [edit for edit in editor.edits() if edit.undoes]
    assert len(redone) == 3


def test_a_restore_that_was_killed_is_finished_by_the_next(
    tmp_path: Path, dataset: Dataset, held: Callable[[], dict[str, bytes]]
):
    before = held()
    runs = Runs(tmp_path / "runs")
    tagger = write_tagger(tmp_path / "tagger")
    run_dir = runs.new("tag", data_path=str(dataset.path), model_path=str(tagger), existing="append")
    runs.resume(run_dir)
    after = held()
    assert after != before
    undo = runs.new("restore-captions", data_path=str(dataset.path), run_path=str(run_dir.path))
    killed(tmp_path / "fox", num_written(dataset), "flowloom.tasks", undo.path)
    changed = {name for name, data in held().items() if data != after.get(name)}
    assert len([name for name in changed if not name.startswith(".")]) >= num_written(dataset)
    subprocess.run(ALL["restore-captions"].command(undo, resume=True).argv, check=True)
    assert held() == before


if __name__ == "__main__":
    from flowloom.server.datasets.operations import AddTags
    from flowloom.server.datasets.table import Filter

    kind, path, state_dir, *edit_id = sys.argv[1:]
    editor = editor_of(Dataset("fox", kind, Path(path)), Path(state_dir))  # pyright: ignore[reportArgumentType]
    if edit_id:
        editor.undo(edit_id[0], is_partial=False)
    else:
        editor.make(AddTags(kind="add", tags=["new"]), Filter(), None, "new")
