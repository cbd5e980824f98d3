"""The index of a JSONL has the same rows, is replaced when the file changes, and is never incomplete."""

from __future__ import annotations

import gc
import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowloom.data import index, rows
from flowloom.data.metadata import Metadata, read_metadata
from flowloom.data.rows import KINDS, scan
from flowloom.errors import DataError

GOOD: dict[str, Any] = {"filename": "a.png", "caption_or_tags": "a cat", "width": 640, "height": 480}
LINES = [
    *(json.dumps(GOOD | {"width": 100 + i, "filename": f"{i}.png"}).encode() for i in range(5)),
    json.dumps(GOOD | {"caption_or_tags": ["one", "another"]}).encode(),
    json.dumps(GOOD | {"width": 64.0, "loss_weight": None}, ensure_ascii=False).encode(),
    json.dumps(GOOD | {"width": 2**70}).encode(),
    json.dumps(GOOD | {"loss_weight": -1}).encode(),
    b"",
    b"   \r",
    b"[1, 2]",
    b"null",
    b'{"filename":',
    b'{"a":[{}',
    b"{}]}",
    b"\xff",
    json.dumps(GOOD).encode() + b"\r",
    json.dumps(GOOD).encode() * 2,  # two objects in one line
    b'{"filename": "a", "caption_or_tags": "b", "more": {}',  # with the next one: one object in two lines
    b', "width": 1, "height": 1}',
    b'{"filename": "a", "caption_or_tags": "b", "width": 1, "height": 1, "more": "\xff"}',
    b'{"filename": "a", "caption_or_tags": "b", "width": 1, "height": 1, "width": 0}',
    json.dumps(GOOD | {"caption_or_tags": []}).encode(),
    json.dumps(GOOD | {"is_tag_based": None, "other": [{}]}).encode(),
    json.dumps(GOOD | {"is_url_based": 1, "filename": "ö\ud83d\ude00"}).encode(),
    b'{"a":' + b"[" * 5000,
]


@pytest.fixture
def indexed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Even small files get an index; the user's cache is the test's own."""
    monkeypatch.setattr(index, "INDEXED_BYTES", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def write(path: Path, num_rows: int = 50, **fields: Any) -> Path:
    lines = (GOOD | {"filename": f"{i}.png", "width": 100 + i} | fields for i in range(num_rows))
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def is_same(one: Metadata, other: Metadata) -> bool:
    arrays = ("widths", "heights", "loss_weights", "lines", "caption_chars", "num_references")
    return (
        all(np.array_equal(getattr(one, name), getattr(other, name)) for name in arrays)
        and one.problems == other.problems
        and [one.row(i) for i in range(len(one))] == [other.row(i) for i in range(len(other))]
    )


@settings(max_examples=300, deadline=None)
@given(
    lines=st.lists(st.sampled_from(LINES), max_size=12),
    block=st.integers(1, 400),
    newline=st.booleans(),
    bom=st.booleans(),
)
def test_blocks_find_what_single_lines_do(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], block: int, newline: bool, bom: bool
) -> None:
    """Wherever the file is cut into blocks or ranges, each line is judged alone."""
    path = tmp_path_factory.mktemp("scan") / "d.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" * bom + b"\n".join(lines) + b"\n" * newline)
    expected, problems = rows._one_by_one(b"\n".join(lines), 3 * bom)
    before, rows.BLOCK_BYTES = rows.BLOCK_BYTES, block
    try:
        whole = scan(path)
        edges = [*index._line_starts(path, [0, path.stat().st_size // 2]), path.stat().st_size]
        joined = index._joined([scan(path, *edges[:2]), scan(path, *edges[1:])])
    finally:
        rows.BLOCK_BYTES = before
    for found in (whole, joined):
        assert found.problems == problems
        for name in KINDS:
            assert found.columns[name].tolist() == expected[name].tolist(), name


def test_a_second_reading_takes_the_index_and_finds_the_same(tmp_path: Path, indexed: None) -> None:
    path = write(tmp_path / "d.jsonl")
    with path.open("ab") as file:
        file.write(b"no row\n")
    first = read_metadata(path)
    beside, _ = index.index_paths(path)
    written = beside.stat().st_mtime_ns
    again = read_metadata(path)
    assert beside.stat().st_mtime_ns == written
    assert is_same(first, again)
    assert [problem.line for problem in again.problems] == [51]


def test_a_changed_file_is_indexed_again(tmp_path: Path, indexed: None) -> None:
    path = write(tmp_path / "d.jsonl")
    read_metadata(path)
    write(path, 51)
    assert len(read_metadata(path)) == 51
    # As long as before and as old, but with other bytes.
    status = path.stat()
    write(path, 51, height=481)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_size == status.st_size
    assert set(read_metadata(path).heights.tolist()) == {481}


@pytest.mark.parametrize("damage", ["empty", "cut", "header", "other"])
def test_a_damaged_index_is_rebuilt(tmp_path: Path, indexed: None, damage: str) -> None:
    path = write(tmp_path / "d.jsonl")
    read_metadata(path)
    beside, _ = index.index_paths(path)
    whole = beside.read_bytes()
    broken = {
        "empty": b"",
        "cut": whole[:-100],
        "header": whole[:16] + b"}" + whole[17:],
        "other": random.Random(0).randbytes(2000),
    }
    beside.write_bytes(broken[damage])
    assert read_metadata(path).widths.tolist() == list(range(100, 150))
    assert beside.read_bytes() == whole


def test_where_the_folder_cannot_be_written_the_index_goes_to_the_cache(
    tmp_path: Path, indexed: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "d.jsonl")
    beside, cached = index.index_paths(path)
    beside.mkdir()  # a folder is in the way: it cannot be replaced by a file, not even by root
    first = read_metadata(path)
    assert cached.is_file()
    assert is_same(first, read_metadata(path))
    assert not list(tmp_path.glob("*.new"))
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/none")
    assert is_same(first, read_metadata(path))


def test_small_files_get_no_index(tmp_path: Path) -> None:
    read_metadata(write(tmp_path / "d.jsonl"))
    assert [path.name for path in tmp_path.iterdir()] == ["d.jsonl"]


def test_processes_read_what_one_process_reads(
    tmp_path: Path, indexed: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "d.jsonl", 300)
    with path.open("ab") as file:
        file.write(b"no row\n\n" + json.dumps(GOOD).encode())
    expected = scan(path)
    monkeypatch.setattr(index, "BYTES_PER_PROCESS", 4096)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2})
    found = index._scan_in_processes(path, path.stat().st_size)
    assert found.problems == expected.problems
    for name in KINDS:
        assert found.columns[name].tolist() == expected.columns[name].tolist()


def test_a_line_that_changed_since_is_an_error_and_never_another_row(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl")
    metadata = read_metadata(path)
    path.write_bytes(path.read_bytes().replace(b'"width": 103', b'"width": 203'))
    assert metadata.row(2).filename == "2.png"
    with pytest.raises(DataError, match=r"d\.jsonl:4: the file has changed"):
        metadata.row(3)
    path.write_bytes(b"x")
    with pytest.raises(DataError, match="changed"):
        metadata.row(0)


def test_no_file_stays_open(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl")

    def open_ones() -> int:
        # Threads of other tests open and close files too.
        links = [link for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
        return sum(link.resolve() == path.resolve() for link in links)

    metadata = [read_metadata(path) for _ in range(5)]
    assert open_ones() == 5
    del metadata
    gc.collect()
    assert open_ones() == 0
