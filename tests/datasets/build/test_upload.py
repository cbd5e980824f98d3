"""An upload is complete, and the new JSONL names each object once; after an interruption it continues."""

from __future__ import annotations

import hashlib
import threading
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import orjson
import pytest
from PIL import Image

from flowloom.datasets.build.build import BuildReport, build_from
from flowloom.datasets.build.index_pages import IndexPages
from flowloom.datasets.build.options import BuildOptions
from flowloom.datasets.build.readers.listing import open_listing
from flowloom.datasets.build.upload import Uploader, UploadReport
from flowloom.errors import DataError, NotFound, SourceError, Unavailable
from tests.datasets.build.images import built, image_bytes, serving, write

URL = "s3://bucket/set"


@dataclass(frozen=True)
class Object:
    """An entry of a listing."""

    name: str
    size: int
    etag: str | None
    modified: float


@dataclass
class FolderStore:
    """A store in a folder, which says what it was asked."""

    root: Path
    has_md5: bool = True
    asked: list[str] = field(default_factory=list)
    fails_after: int = 10**9
    loses: str = ""
    fails_with: dict[str, SourceError] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def _say(self, what: str) -> None:
        with self._lock:
            self.asked.append(what)

    def read(self, name: str) -> bytes:
        self._say(f"read {name}")
        return (self.root / name).read_bytes()

    def read_range(self, name: str, start: int, length: int) -> bytes:
        self._say(f"range {name} {length}")
        if name in self.fails_with:
            raise self.fails_with[name]
        return (self.root / name).read_bytes()[start : start + length]

    def list(self, prefix: str) -> Iterator[Object]:
        for path in sorted(path for path in self.root.rglob("*") if path.is_file()):
            data = path.read_bytes()
            etag = f'"{hashlib.md5(data).hexdigest()}"' if self.has_md5 else '"1-multipart"'
            yield Object(path.relative_to(self.root).as_posix(), len(data), etag, path.stat().st_mtime)

    def write(self, name: str, content: bytes | Path) -> None:
        self._say(f"write {name}")
        if len([what for what in self.asked if what.startswith("write")]) > self.fails_after:
            raise Unavailable("the store is down")
        if name != self.loses:
            write(self.root / name, content.read_bytes() if isinstance(content, Path) else content)

    def written(self) -> list[str]:
        return sorted(what.removeprefix("write ") for what in self.asked if what.startswith("write"))


@pytest.fixture
def jsonl(tmp_path: Path) -> Path:
    """Four images, one of them in two rows."""
    for i in range(4):
        write(tmp_path / f"in/sub dir/{i}ä.png", image_bytes(i))
        write(tmp_path / f"in/sub dir/{i}ä.txt", f"caption {i}")
    built(tmp_path / "in", tmp_path / "d.jsonl")
    first = (tmp_path / "d.jsonl").read_bytes().splitlines()[0]
    with (tmp_path / "d.jsonl").open("ab") as file:
        file.write(first + b"\n")
    return tmp_path / "d.jsonl"


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    (tmp_path / "bucket").mkdir()
    return FolderStore(tmp_path / "bucket")


def upload(jsonl: Path, store: FolderStore, public_url: str = "") -> UploadReport:
    out = jsonl.with_name("new.jsonl")
    return Uploader(jsonl, URL, cast("Any", store)).upload(out, public_url, lambda report: None)


@pytest.mark.parametrize("has_md5", [True, False])
def test_everything_is_uploaded_and_a_rerun_sends_nothing(
    jsonl: Path, store: FolderStore, has_md5: bool
) -> None:
    store.has_md5 = has_md5
    report = upload(jsonl, store)
    assert (report.num_rows, report.num_sent, report.num_unchanged, report.unusable) == (5, 4, 0, [])
    rows = [orjson.loads(line) for line in report.output.read_bytes().splitlines()]
    assert [row["filename"] for row in rows] == [f"{URL}/sub dir/{i}ä.png" for i in (0, 1, 2, 3, 0)]
    assert all(row["is_url_based"] for row in rows)
    assert (store.root / "new.jsonl").read_bytes() == report.output.read_bytes()
    store.asked.clear()
    report = upload(jsonl, store)
    assert (report.num_sent, report.num_unchanged) == (0, 4)
    assert store.written() == ["new.jsonl"]


def test_public_addresses_are_escaped(jsonl: Path, store: FolderStore) -> None:
    report = upload(jsonl, store, "https://host/set/")
    first = orjson.loads(report.output.read_bytes().splitlines()[0])
    assert first["filename"] == "https://host/set/sub%20dir/0%C3%A4.png"


@pytest.mark.parametrize("has_md5", [True, False])
def test_an_interrupted_upload_continues(jsonl: Path, store: FolderStore, has_md5: bool) -> None:
    store.has_md5 = has_md5
    store.fails_after = 2
    with pytest.raises(Unavailable, match="the store is down"):
        upload(jsonl, store)
    assert not jsonl.with_name("new.jsonl").exists()
    store.fails_after = 10**9
    report = upload(jsonl, store)
    assert report.num_sent + report.num_unchanged == 4
    assert len(list(store.root.rglob("*.png"))) == 4
    if has_md5:
        assert report.num_unchanged == 2


def test_changed_images_are_sent_again(jsonl: Path, store: FolderStore, tmp_path: Path) -> None:
    upload(jsonl, store)
    changed = bytearray(image_bytes(2))
    changed[-1] ^= 1
    write(tmp_path / "in/sub dir/2ä.png", bytes(changed))
    store.asked.clear()
    assert upload(jsonl, store).num_sent == 1
    assert (store.root / "sub dir/2ä.png").read_bytes() == changed


def test_objects_that_the_store_loses_are_reported(jsonl: Path, store: FolderStore) -> None:
    store.loses = "sub dir/1ä.png"
    with pytest.raises(DataError, match=r"1 of 4 images are missing.*\n  sub dir/1ä.png"):
        upload(jsonl, store)
    assert not jsonl.with_name("new.jsonl").exists()


def test_rows_without_an_image_are_reported(jsonl: Path, store: FolderStore, tmp_path: Path) -> None:
    (tmp_path / "in/sub dir/0ä.png").unlink()
    report = upload(jsonl, store)
    assert [bad.where for bad in report.unusable] == ["d.jsonl:1", "d.jsonl:5"]
    assert report.num_rows == 3


def test_the_original_is_never_overwritten(jsonl: Path, store: FolderStore) -> None:
    before = jsonl.read_bytes()
    with pytest.raises(DataError, match="choose another file"):
        Uploader(jsonl, URL, cast("Any", store)).upload(jsonl, "", lambda report: None)
    assert jsonl.read_bytes() == before


def test_a_listing_becomes_rows_by_range_requests(store: FolderStore, tmp_path: Path) -> None:
    large = image_bytes(9, (64, 48)) + bytes(300_000)
    write(store.root / "a/large.png", large)
    write(store.root / "a/large.txt", "large")
    write(store.root / "b.jpg", image_bytes(1, (20, 10), ".jpg"))
    write(store.root / "b.jpg.txt", "b")
    write(store.root / "broken.png", b"x" * 100)
    write(store.root / "notes.md", "x")
    options = BuildOptions(default_caption="none")
    found = list(open_listing(URL, cast("Any", store), options).items)
    assert len(found) == 3
    rows, report = built_from(store, tmp_path, options)
    assert [(row["filename"], row["caption_or_tags"], row["width"]) for row in rows] == [
        (f"{URL}/b.jpg", "b", 20),
        (f"{URL}/a/large.png", "large", 64),
    ]
    assert [bad.where for bad in report.unusable] == ["broken.png"]
    assert "read a/large.png" not in store.asked
    assert max(int(what.split()[-1]) for what in store.asked if what.startswith("range")) < 300_000
    store.asked.clear()
    _, report = built_from(store, tmp_path, options)
    assert report.num_read == 0
    assert [what for what in store.asked if "broken" not in what] == []


def built_from(
    store: FolderStore, folder: Path, options: BuildOptions
) -> tuple[list[dict[str, Any]], BuildReport]:
    reading = open_listing(URL, cast("Any", store), options)
    report = build_from(reading, BuildReport(URL, folder / "d.jsonl"), options, lambda report: None)
    return [orjson.loads(line) for line in (folder / "d.jsonl").read_bytes().splitlines()], report


def test_a_failing_object_is_reported_and_an_unreachable_store_stops(
    store: FolderStore, tmp_path: Path
) -> None:
    write(store.root / "a.png", image_bytes(1))
    write(store.root / "b.png", image_bytes(2))
    options = BuildOptions(default_caption="x")
    store.fails_with["b.png"] = NotFound("b.png: nothing is there.")
    rows, report = built_from(store, tmp_path, options)
    assert len(rows) == 1
    assert [(bad.where, bad.reason) for bad in report.unusable] == [("b.png", "b.png: nothing is there.")]
    store.fails_with["b.png"] = Unavailable("no answer")
    (tmp_path / "d.jsonl.state").unlink()
    with pytest.raises(Unavailable):
        built_from(store, tmp_path, options)
    assert len((tmp_path / "d.jsonl").read_bytes().splitlines()) == 1


class WebStore:
    """The answer of a web server to a plain request."""

    def __init__(self, url: str):
        self.url = url

    def read(self, name: str) -> bytes:
        with urllib.request.urlopen(f"{self.url}/{name}") as answer:
            return answer.read()

    def read_range(self, name: str, start: int, length: int) -> bytes:
        return self.read(name)[start : start + length]

    def list(self, prefix: str) -> Iterator[Object]:
        raise DataError("web servers have no listings of their own")

    def write(self, name: str, content: bytes | Path) -> None:
        raise DataError("web servers are read only")


def test_a_web_servers_pages_of_links_become_rows(tmp_path: Path) -> None:
    with serving(tmp_path / "web") as server:
        check_pages(server, tmp_path)


def check_pages(server: str, tmp_path: Path) -> None:
    for number, name in enumerate(["a b/ü & #1.png", "top.png", "x/y/deep?.png"]):
        write(tmp_path / "web" / name, image_bytes(number, (20 + number, 10)))
        write((tmp_path / "web" / name).with_suffix(".txt"), f"caption {number}")
    pages = IndexPages(server, cast("Any", WebStore(server)))
    reading = open_listing(server, pages, BuildOptions())
    report = build_from(
        reading, BuildReport(server, tmp_path / "d.jsonl"), BuildOptions(), lambda report: None
    )
    rows = [orjson.loads(line) for line in (tmp_path / "d.jsonl").read_bytes().splitlines()]
    assert not report.unusable
    assert sorted((row["caption_or_tags"], row["width"]) for row in rows) == [
        ("caption 0", 20),
        ("caption 1", 21),
        ("caption 2", 22),
    ]
    for row in rows:
        with urllib.request.urlopen(row["filename"]) as answer, Image.open(answer) as image:
            assert image.width == row["width"]
