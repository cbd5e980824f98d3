"""Captions are replaced only where they are what they were, and as a whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from flowloom.datasets.captions.folder import FolderCaptions
from flowloom.datasets.captions.journal import Journal, pending
from flowloom.datasets.captions.jsonl import JsonlCaptions
from flowloom.datasets.captions.store import CaptionError, CaptionRef, Change, OutsideFolder, replacing


@pytest.fixture
def jsonl(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    rows = [{"filename": f"{name}.png", "caption_or_tags": "old", "note": 2**70} for name in "abc"]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def edited(store: JsonlCaptions, place: str, caption: str) -> Change:
    data = store.read(place)
    return Change(place, place, data, store.edited(place, data, [caption]))


def test_rows_that_another_program_wrote_meanwhile_stay(jsonl: Path):
    theirs = jsonl.read_text().replace("old", "theirs")
    with closing(JsonlCaptions(jsonl)) as store:
        change = edited(store, "1", "ours")

        def changes() -> Iterator[Change]:
            yield change
            jsonl.with_name("theirs").write_text(theirs)
            jsonl.with_name("theirs").replace(jsonl)

        with pytest.raises(CaptionError, match="another program"):
            store.write(changes())
    assert jsonl.read_text() == theirs
    assert [path.name for path in jsonl.parent.iterdir()] == ["rows.jsonl"]


def test_other_fields_that_changed_meanwhile_are_kept(jsonl: Path):
    with closing(JsonlCaptions(jsonl)) as store:
        changes = [edited(store, place, "new") for place in "123"]
        lines = jsonl.read_text().splitlines()
        lines[1] = lines[1].replace('"note"', '"width": 8, "note"')
        lines[2] = lines[2].replace("old", "theirs")
        jsonl.write_text("".join(line + "\n" for line in lines))
        written = store.write(changes)
    assert (written.num_written, written.changed_meanwhile) == (2, [CaptionRef("3", "3")])
    rows = [json.loads(line) for line in jsonl.read_text().splitlines()]
    assert [row["caption_or_tags"] for row in rows] == ["new", "new", "theirs"]
    assert rows[1]["width"] == 8
    assert rows[1]["note"] == 2**70


def test_two_processes_do_not_write_one_file_at_once(jsonl: Path):
    before = jsonl.read_text()
    with closing(JsonlCaptions(jsonl)) as store:
        change = edited(store, "1", "ours")
        with replacing(jsonl) as file:
            with pytest.raises(CaptionError, match="another program"):
                store.write([change])
            file.write(before.replace("old", "theirs").encode())
    assert jsonl.read_text() == before.replace("old", "theirs")
    assert [path.name for path in jsonl.parent.iterdir()] == ["rows.jsonl"]


@pytest.mark.parametrize(
    ("line", "captions", "after"),
    [
        ('{"filename":"a","caption_or_tags":"x"}', ["y", "z"], '{"filename":"a","caption_or_tags":"y z"}'),
        ('{"filename": "a", "n": 1.50}', ["é"], '{"filename": "a", "n": 1.5, "caption_or_tags": "é"}'),
        (
            '{"caption_or_tags":["x"],"filename":"a"}',
            ["y", "z"],
            '{"caption_or_tags":["y","z"],"filename":"a"}',
        ),
    ],
)
def test_a_row_keeps_its_form(tmp_path: Path, line: str, captions: list[str], after: str):
    edited = JsonlCaptions(tmp_path / "rows.jsonl").edited("1", line.encode(), captions)
    assert edited
    assert edited.decode() == after


OLD_ENTRIES: list[dict[str, Any]] = [
    {"place": "2", "name": "b.png", "before": {"caption_or_tags": "old"}, "after": {"caption_or_tags": "n"}},
    {"place": "3", "name": "c.png", "before": {}, "after": {"caption_or_tags": "n", "is_tag_based": True}},
]


def test_a_journal_of_an_older_run_is_undone(jsonl: Path):
    before = [json.loads(line) for line in jsonl.read_text().splitlines()]
    del before[2]["caption_or_tags"]
    rows = [before[0], *(row | entry["after"] for row, entry in zip(before[1:], OLD_ENTRIES, strict=True))]
    jsonl.write_text("".join(json.dumps(row) + "\n" for row in rows))
    journal_path = jsonl.with_name("captions.journal")
    journal_path.write_text("".join(json.dumps(entry) + "\n" for entry in reversed(OLD_ENTRIES)))
    changed: list[CaptionRef] = []
    with closing(JsonlCaptions(jsonl)) as store, closing(Journal(journal_path)) as journal:
        store.write(pending(store, journal.changes(store), changed, is_undo=True))
    assert changed == []
    assert [json.loads(line) for line in jsonl.read_text().splitlines()] == before


def test_a_file_journal_of_an_older_run_is_undone(tmp_path: Path):
    (tmp_path / "a.txt").write_text("ours\n")
    entry = {"place": "a.txt", "name": "a.png", "before": "caf\udce9", "after": "ours\n"}
    (tmp_path / "journal").write_text(json.dumps(entry) + "\n")
    store, changed = FolderCaptions(tmp_path), list[CaptionRef]()
    with closing(Journal(tmp_path / "journal")) as journal:
        store.write(pending(store, journal.changes(store), changed, is_undo=True))
    assert (tmp_path / "a.txt").read_bytes() == b"caf\xe9"


def test_nothing_outside_of_the_folder_is_read_or_written(tmp_path: Path):
    folder = tmp_path / "set"
    folder.mkdir()
    (tmp_path / "secret.txt").write_text("secret")
    (folder / "link.txt").symlink_to(tmp_path / "secret.txt")
    (folder / "out").symlink_to(tmp_path)
    store = FolderCaptions(folder)
    for place in ("link.txt", "../secret.txt", "out/secret.txt", str(tmp_path / "secret.txt")):
        with pytest.raises(OutsideFolder, match="leads out of"):
            store.read(place)
        with pytest.raises(OutsideFolder, match="leads out of"):
            store.write([Change("x", place, b"secret", b"ours")])
    assert (tmp_path / "secret.txt").read_text() == "secret"
