"""Many captions edited at once: previewed, undone, and never over changes by others."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, TypeVar

import httpx
import pytest
from PIL import Image

from flowloom.datasets.captions.store import CaptionError, Change
from flowloom.server.datasets.edit_lock import EditCancelled, EditLock, EditUnderWay, Phase
from flowloom.server.datasets.edits import Editor
from flowloom.server.datasets.index import Index
from flowloom.server.datasets.locations import Dataset
from flowloom.server.datasets.operations import (
    AddTags,
    RemoveTags,
    ReorderTags,
    ReplaceTag,
    ReplaceText,
    applied,
)
from flowloom.server.datasets.table import Filter
from tests.server.conftest import Studio

T = TypeVar("T")
COUNT = 1000
CAPTIONS = {
    "1.png": "fox, snow, grey fur",
    "2.png": "Fox,snow ,  FOX",
    "3.png": "A fox looks back.",
    "4.png": "",
    "den/5.png": "cubs, two, silver fur, grey fur",
}


@pytest.fixture(params=["folder", "jsonl"])
def fox(one_studio: Studio, request: pytest.FixtureRequest) -> str:
    """The path of a dataset's edits: of a folder, and of a JSONL."""
    name = "".join(letter for letter in request.node.name if letter.isalnum() or letter in " _")[:80]
    folder = one_studio.home / "data" / name
    (folder / "den").mkdir(parents=True)
    rows = []
    for item, caption in CAPTIONS.items():
        Image.new("RGB", (8, 8)).save(folder / item)
        rows.append({"filename": item, "caption_or_tags": caption, "width": 8, "height": 8, "note": "é"})
        if caption:
            (folder / item).with_suffix(".txt").write_text(caption)
    if request.param == "jsonl":
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\r\n" for row in rows))
        one_studio.post("/api/datasets", {"name": f"{name} rows", "path": str(folder / "rows.jsonl")}, 201)
        name = f"{name} rows"
    return f"/api/datasets/{name}/edits"


def captions(studio: Studio, edits: str) -> dict[str, str]:
    """By the images' names, as the API shows them."""
    shown = studio.get(edits.replace("/edits", "/images"))["images"]
    return {one["file"]: one["caption"] for one in shown}


def held(studio: Studio, edits: str) -> bytes:
    """The content of all files with captions on the disk."""
    name = edits.split("/")[3].removesuffix(" rows")
    files = sorted((studio.home / "data" / name).rglob("*"))
    wanted = (".jsonl",) if edits.endswith(" rows/edits") else (".txt",)
    return b"|".join(f"{path.name}: ".encode() + path.read_bytes() for path in files if path.suffix in wanted)


def put(studio: Studio, edits: str, item: str, caption: str) -> httpx.Response:
    url = edits.replace("/edits", f"/captions/{item}")
    return studio.http.put(url, json={"caption": caption}, headers={"if-match": "*"})


def item_of(edits: str, number: int) -> str:
    return str(number) if " rows/" in edits else list(CAPTIONS)[number - 1]


@pytest.mark.parametrize(
    ("operation", "before", "after"),
    [
        (AddTags(kind="add", tags=["snow", "fox"]), "fox, red", "fox, red, snow"),
        (AddTags(kind="add", tags=["a", "b"], where="start"), "c", "a, b, c"),
        (AddTags(kind="add", tags=["a"]), "", "a"),
        (AddTags(kind="add", tags=["A"]), "b,a", "b,a"),
        (RemoveTags(kind="remove", tags=["fox"]), "Fox, fox cub, fox", "fox cub"),
        (RemoveTags(kind="remove", tags=["fox"]), "a,  b", "a,  b"),
        (RemoveTags(kind="remove", tags=["fox"]), "A fox, by a lake.", "A fox, by a lake."),
        (ReplaceTag(kind="replace", tag="grey", by="silver"), "Grey, fox, silver, grey", "silver, fox"),
        (ReplaceTag(kind="replace", tag="fox", by="FOX"), "fox", "FOX"),
        (ReorderTags(kind="reorder", first=["c"], rest="sorted"), "b, a, C, a", "C, a, b"),
        (ReorderTags(kind="reorder", first=["c"]), "b, a, c", "c, b, a"),
        (ReorderTags(kind="reorder", rest="sorted"), "The fox is, and so am I.", "The fox is, and so am I."),  # pyright: ignore[reportCallIssue]
        (ReplaceText(kind="replace_text", text="(.*", by="x"), "a(.*b", "axb"),
        (AddTags(kind="add", tags=["z"]), "one\ntwo", "one, z\ntwo, z"),
    ],
)  # fmt: skip
def test_each_operation_does_what_it_says(operation: Any, before: str, after: str):
    assert applied(operation, before) == after
    assert applied(operation, after) == after


def test_a_preview_shows_what_will_be_done_and_changes_nothing(one_studio: Studio, fox: str):
    before = held(one_studio, fox)
    body = {"operation": {"kind": "replace", "tag": "grey fur", "by": "silver fur"}}
    preview = one_studio.post(f"{fox}/preview", body | {"examples": 1}, 200)
    assert (preview["num_matching"], preview["num_changed"]) == (5, 2)
    assert preview["examples"] == [
        {"item": item_of(fox, 1), "before": "fox, snow, grey fur", "after": "fox, snow, silver fur"}
    ]
    assert held(one_studio, fox) == before
    edit = one_studio.post(fox, body | {"version": preview["version"]}, 201)
    assert edit["num_changed"] == 2
    assert captions(one_studio, fox)["den/5.png"] == "cubs, two, silver fur"


def test_an_edit_is_undone_to_the_last_byte_and_done_again(one_studio: Studio, fox: str):
    before = held(one_studio, fox)
    edit = one_studio.post(fox, {"operation": {"kind": "add", "tags": ["new"]}}, 201)
    assert edit["num_changed"] == 5
    after = held(one_studio, fox)
    assert captions(one_studio, fox)["4.png"] == "new"
    undone = one_studio.post(f"{fox}/{edit['id']}/undo", {}, 200)
    assert undone["undoes"] == edit["id"]
    assert held(one_studio, fox) == before
    assert captions(one_studio, fox) == CAPTIONS
    one_studio.post(f"{fox}/{undone['id']}/undo", {}, 200)
    assert held(one_studio, fox) == after
    assert len(one_studio.get(fox)) == 3


def test_an_edit_is_not_undone_over_later_changes(one_studio: Studio, fox: str):
    edit = one_studio.post(fox, {"operation": {"kind": "add", "tags": ["new"]}}, 201)
    assert put(one_studio, fox, item_of(fox, 2), "by somebody else").status_code == 200
    before = held(one_studio, fox)
    refused = one_studio.http.post(f"{fox}/{edit['id']}/undo", json={})
    assert refused.status_code == 409
    assert [problem["where"] for problem in refused.json()["errors"]] == [f"/{item_of(fox, 2)}"]
    assert held(one_studio, fox) == before
    undone = one_studio.post(f"{fox}/{edit['id']}/undo", {"is_partial": True}, 200)
    assert undone["changed_meanwhile"] == [item_of(fox, 2)]
    assert captions(one_studio, fox) == CAPTIONS | {"2.png": "by somebody else"}


def test_an_edit_that_is_no_longer_its_preview_is_refused(one_studio: Studio, fox: str):
    body = {"operation": {"kind": "add", "tags": ["new"]}}
    version = one_studio.post(f"{fox}/preview", body, 200)["version"]
    put(one_studio, fox, item_of(fox, 1), "changed")
    before = held(one_studio, fox)
    assert one_studio.http.post(fox, json=body | {"version": version}).status_code == 412
    assert held(one_studio, fox) == before
    assert one_studio.get(fox) == []


def test_a_large_edit_reports_progress_and_is_undone_to_the_last_byte(one_studio: Studio):
    count = 3000
    folder = one_studio.home / "data" / "many"
    folder.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(folder / "0.png")
    for number in range(1, count):
        os.link(folder / "0.png", folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"fox, number {number}")
    before = held(one_studio, "/api/datasets/many/edits")
    stages: list[dict[str, Any]] = []
    with ThreadPoolExecutor(1) as others:

        def followed(place: str, body: dict[str, Any]) -> dict[str, Any]:
            answer = others.submit(httpx.post, one_studio.url + place, json=body, timeout=120)
            stages.clear()
            while not answer.done():
                stages.append(one_studio.get("/api/datasets/many/edits/progress")["edit"])
            return answer.result().raise_for_status().json()

        def check(title: str) -> None:
            known = [stage for stage in stages if stage and stage["num_total"]]
            order = [(stage["phase"], stage["num_done"]) for stage in known]
            assert order == sorted(order)  # reading comes before writing
            assert {stage["num_total"] for stage in known if stage["phase"] == "writing"} == {count}
            assert len({num for phase, num in order if phase == "writing"}) > 1
            assert all(stage["title"].startswith(title) for stage in known)

        edit = followed("/api/datasets/many/edits", {"operation": {"kind": "add", "tags": ["new"]}})
        check("Added “new” at the end")
        assert edit["num_changed"] == count
        followed(f"/api/datasets/many/edits/{edit['id']}/undo", {})
        check("Undone: ")
    assert one_studio.get("/api/datasets/many/edits/progress") == {"edit": None}
    assert held(one_studio, "/api/datasets/many/edits") == before


class Hasty(EditLock):
    """The first edit is cancelled as soon as 700 captions of a phase are done."""

    def __init__(self, phase: Phase):
        super().__init__()
        self.when: Phase | None = phase

    def watch(self, phase: Phase, total: int, each: Iterable[T]) -> Iterator[T]:
        for number, one in enumerate(super().watch(phase, total, each), start=1):
            yield one
            if phase == self.when and number == 700:
                self.when = None
                assert self.cancel() == self.stage


@pytest.mark.parametrize("kind", ["folder", "jsonl"])
def test_an_edit_that_is_cancelled_while_it_writes_is_listed_and_undone(
    tmp_path: Path, kind: Literal["folder", "jsonl"]
):
    editor, held_now = editor_of(tmp_path, kind, Hasty("writing"))
    before = held_now()
    edit = editor.make(AddTags(kind="add", tags=["new"]), Filter(), None, "new")
    assert (edit.num_changed, edit.is_whole) == (700, False)
    assert held_now().count(b", new") == 700
    assert [(one.id, one.num_changed, one.is_whole) for one in editor.edits()] == [(edit.id, 700, False)]
    undone = editor.undo(edit.id, is_partial=False)
    assert (undone.num_changed, undone.is_whole) == (700, True)
    assert held_now() == before


def test_an_edit_that_is_cancelled_before_it_writes_changes_nothing(tmp_path: Path):
    editor, held_now = editor_of(tmp_path, "folder", Hasty("reading"))
    before = held_now()
    add = AddTags(kind="add", tags=["new"])
    with pytest.raises(EditCancelled, match="No caption was changed"):
        editor.make(add, Filter(), None, "new")
    assert held_now() == before
    assert editor.edits() == []
    assert not list(editor.folder.glob("*"))
    assert editor.make(add, Filter(), None, "again").num_changed == COUNT


def test_cancelling_is_a_request(one_studio: Studio, fox: str):
    assert one_studio.post(f"{fox}/cancel", None, 200) == {"edit": None}
    assert one_studio.post(fox, {"operation": {"kind": "add", "tags": ["new"]}}, 201)["is_whole"]


def test_rows_that_another_program_wrote_meanwhile_stay(tmp_path: Path):
    editor, held_now = editor_of(tmp_path, "jsonl", EditLock())
    path = tmp_path / "rows.jsonl"
    rows = path.read_bytes().splitlines(keepends=True)
    theirs = b"".join([*rows[:-1], rows[-1].replace(b"fox", b"theirs")])

    def changes() -> Iterator[Change]:
        yield Change("1", "1", rows[0].rstrip(), rows[0].rstrip().replace(b"fox", b"ours"))
        path.with_name("new").write_bytes(theirs)
        path.with_name("new").replace(path)

    with pytest.raises(CaptionError, match="another program"):
        editor.store.write(changes())
    assert held_now() == theirs
    assert [one.name for one in tmp_path.iterdir() if one.name != "state"] == ["rows.jsonl"]


def editor_of(
    folder: Path, kind: Literal["folder", "jsonl"], lock: EditLock
) -> tuple[Editor, Callable[[], bytes]]:
    """The editor of a dataset of COUNT captions, and what holds them now."""
    names = [f"{number:05}" for number in range(COUNT)]
    if kind == "jsonl":
        path = folder / "rows.jsonl"
        row = {"caption_or_tags": "fox, snow", "width": 8, "height": 8}
        path.write_text("".join(json.dumps({"filename": f"{name}.png", **row}) + "\n" for name in names))
    else:
        path = folder / "fox"
        path.mkdir()
        Image.new("RGB", (8, 8)).save(path / f"{names[0]}.png")
        for name in names:
            if name != names[0]:
                os.link(path / f"{names[0]}.png", path / f"{name}.png")
            (path / f"{name}.txt").write_text("fox, snow")

    def held_now() -> bytes:
        files = sorted(path.glob("*.txt")) if path.is_dir() else [path]
        return b"".join(file.read_bytes() for file in files)

    index = Index(Dataset("fox", kind, path), folder / "state")
    return Editor(index, lock), held_now


def test_a_concurrent_edit_is_refused_with_the_progress_of_the_first(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("flowloom.server.datasets.edit_lock.PATIENCE_S", 0.01)
    lock = EditLock()

    def second() -> None:
        with lock.take("second"):
            pass

    with ThreadPoolExecutor(1) as others:
        with lock.take("first"):
            list(lock.watch("writing", 1000, range(7)))
            with pytest.raises(EditUnderWay, match="first: writing, 7 of 1,000 captions"):
                others.submit(second).result()
        others.submit(second).result()
    assert lock.stage is None


def test_only_the_selected_captions_are_edited(one_studio: Studio, fox: str):
    body = {"operation": {"kind": "add", "tags": ["new"]}, "filter": {"tags": ["snow"]}}
    one_studio.post(fox, body | {"items": [item_of(fox, 2), item_of(fox, 3)]}, 201)
    assert captions(one_studio, fox) == CAPTIONS | {"2.png": "Fox, snow, FOX, new"}
    missing = {"operation": {"kind": "set", "text": "a fox"}, "filter": {"has_caption": False}}
    one_studio.post(fox, missing, 201)
    assert captions(one_studio, fox)["4.png"] == "a fox"


def test_an_edit_that_was_cut_short_is_undone_like_any_other(one_studio: Studio, fox: str):
    if " rows/" in fox:
        return  # a JSONL is written as a whole
    before = held(one_studio, fox)
    edit = one_studio.post(fox, {"operation": {"kind": "remove", "tags": ["snow"]}}, 201)
    # As if the studio had died after the first of two captions.
    (one_studio.home / "data" / fox.split("/")[3] / "2.txt").write_text(CAPTIONS["2.png"])
    one_studio.post(f"{fox}/{edit['id']}/undo", {}, 200)
    assert held(one_studio, fox) == before


@pytest.mark.parametrize(
    "operation",
    [
        {"kind": "add", "tags": []},
        {"kind": "add", "tags": ["a, b"]},
        {"kind": "add", "tags": ["a\nb"]},
        {"kind": "add", "tags": [" "]},
        {"kind": "replace", "tag": "a"},
        {"kind": "nothing"},
        {"kind": "replace_text", "text": ""},
        {},
    ],
)
def test_an_operation_that_makes_no_sense_is_refused(one_studio: Studio, operation: dict[str, Any]):
    one_studio.http.post("/api/datasets", json={"name": "plain"})
    answer = one_studio.http.post("/api/datasets/plain/edits", json={"operation": operation})
    assert answer.status_code == 422


def test_edits_outlive_the_studio(studio_at: Callable[..., Studio]):
    studio = studio_at().start()
    studio.post("/api/datasets", {"name": "fox"}, 201)
    folder: Path = studio.home / "data" / "fox"
    Image.new("RGB", (8, 8)).save(folder / "1.png")
    (folder / "1.txt").write_bytes("füchse, schnee".encode("cp1252"))
    Image.new("RGB", (8, 8)).save(folder / "2.png")
    edit = studio.post("/api/datasets/fox/edits", {"operation": {"kind": "set", "text": "fox"}}, 201)
    assert edit["num_changed"] == 1
    studio.end()
    studio.start()
    studio.post(f"/api/datasets/fox/edits/{edit['id']}/undo", {}, 200)
    assert not (folder / "2.txt").exists()
    assert (folder / "1.txt").read_bytes() == "füchse, schnee".encode("cp1252")
    assert studio.http.post("/api/datasets/fox/edits/..%2f..%2fx/undo", json={}).status_code == 404
