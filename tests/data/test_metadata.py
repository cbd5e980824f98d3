"""Every line of a JSONL is trained, or listed with its number and reason."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flowloom.data.metadata import check_skipped, read_metadata
from flowloom.errors import DataError

GOOD = {"filename": "a.png", "caption_or_tags": "a cat", "width": 640, "height": 480}


def write(path: Path, *rows: object) -> Path:
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def test_a_row_needs_no_loss_weight_and_no_flags(tmp_path: Path) -> None:
    metadata = read_metadata(write(tmp_path / "d.jsonl", GOOD))
    row = metadata.row(0)
    assert (row.filename, row.caption, row.width, row.height) == ("a.png", "a cat", 640, 480)
    assert (row.loss_weight, row.is_tag_based, row.is_url_based) == (1.0, False, False)


def test_flow_rows_are_read_unchanged(tmp_path: Path) -> None:
    full = GOOD | {"is_tag_based": True, "is_url_based": True, "loss_weight": 0.25, "extra": [1, 2]}
    row = read_metadata(write(tmp_path / "d.jsonl", full)).row(0)
    assert (row.is_tag_based, row.is_url_based, row.loss_weight) == (True, True, 0.25)


BAD = {
    "not JSON": b'{"filename": "a.png", ',
    "not a JSON object": b"[1, 2]",
    "utf": b'{"filename": "\xff\xfe"}',
    "width is 0": json.dumps(GOOD | {"width": 0}).encode(),
    "height is -3": json.dumps(GOOD | {"height": -3}).encode(),
    "height is None": json.dumps({k: v for k, v in GOOD.items() if k != "height"}).encode(),
    "width is '640'": json.dumps(GOOD | {"width": "640"}).encode(),
    "width is True": json.dumps(GOOD | {"width": True}).encode(),
    "width is 10000000": json.dumps(GOOD | {"width": 10_000_000}).encode(),
    "caption_or_tags is None": json.dumps(GOOD | {"caption_or_tags": None}).encode(),
    "filename is empty": json.dumps(GOOD | {"filename": ""}).encode(),
    "loss_weight is 1.5": json.dumps(GOOD | {"loss_weight": 1.5}).encode(),
    "loss_weight is 'x'": json.dumps(GOOD | {"loss_weight": "x"}).encode(),
    "NaN": b'{"filename":"a","caption_or_tags":"b","width":1,"height":1,"loss_weight":NaN}',
}


@pytest.mark.parametrize("reason", BAD)
def test_a_bad_line_is_listed_and_the_others_are_used(tmp_path: Path, reason: str) -> None:
    metadata = read_metadata(
        write(tmp_path / "d.jsonl", GOOD, b"", BAD[reason], GOOD | {"filename": "b.png"})
    )
    assert [metadata.row(i).filename for i in range(len(metadata))] == ["a.png", "b.png"]
    assert [metadata.row(i).line for i in range(2)] == [1, 4]
    assert [problem.line for problem in metadata.problems] == [3]
    if reason not in ("utf", "NaN"):
        assert reason in metadata.problems[0].reason


def test_bom_crlf_and_a_missing_last_newline_are_fine(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    line = json.dumps(GOOD).encode()
    path.write_bytes(b"\xef\xbb\xbf" + line + b"\r\n" + line)
    metadata = read_metadata(path)
    assert len(metadata) == 2
    assert metadata.row(1).filename == "a.png"
    assert metadata.row(0).caption == "a cat"


def test_a_file_without_a_usable_row_is_refused_with_its_first_reason(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Line 1: width is 0"):
        read_metadata(write(tmp_path / "d.jsonl", GOOD | {"width": 0}))
    with pytest.raises(DataError, match="no such file"):
        read_metadata(tmp_path / "missing.jsonl")


def test_too_many_bad_rows_are_listed(tmp_path: Path) -> None:
    skipped = {f"d.jsonl:{i}": "broken" for i in range(30)}
    check_skipped(tmp_path / "d.jsonl", skipped, num_rows=600, limit=0.05)
    with pytest.raises(DataError, match=r"(?s)30 of 599 rows.*d\.jsonl:0: broken.*10 more"):
        check_skipped(tmp_path / "d.jsonl", skipped, num_rows=599, limit=0.05)
