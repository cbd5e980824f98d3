"""One rule for a row: the fast scan of whole files and `parse` of a single line agree."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import orjson
from hypothesis import example, given, settings
from hypothesis import strategies as st

from flowloom.data.row_checks import MAX_SIDE, BadRow, parse
from flowloom.data.rows import scan
from flowloom.server.datasets.scan import row_of

SIDES = st.sampled_from([8, 1, 0, -1, MAX_SIDE, MAX_SIDE + 1, 8.0, 8.5, "8", None, True, 2**70])
TEXTS = st.one_of(st.just("fox"), st.text(max_size=5))
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "filename": st.one_of(TEXTS, st.sampled_from(["", None, 1])),
    "caption_or_tags": st.one_of(TEXTS, st.lists(TEXTS, max_size=2), st.sampled_from([None, 1, [1], {}])),
    "width": SIDES,
    "height": SIDES,
}
MORE: dict[str, st.SearchStrategy[Any]] = {
    "loss_weight": st.sampled_from([0, 1, 0.5, 1.5, -1, "1", None, True]),
    "is_tag_based": st.sampled_from([True, False, None, 0, 1, "yes", 2]),
    "is_url_based": st.sampled_from([True, False, None, 0, 1, "no"]),
    "references": st.sampled_from([["a.png"], [], ["a", "b"], [""], "a.png", [1], None, {}]),
    "note": st.sampled_from([1, [], {}, "\ud800", 2**70, float("nan")]),
}
GOOD = {"filename": "a", "caption_or_tags": "fox", "width": 8, "height": 8}
ROWS = st.one_of(st.just(GOOD), st.fixed_dictionaries(FIELDS, optional=MORE))
LINES = st.one_of(
    ROWS.map(lambda row: json.dumps(row).encode()),
    ROWS.map(lambda row: json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass")),
    st.sampled_from(
        [b"", b" ", b"\r", b"{}", b"[]", b"1", b"{", b"\xff", b"\xef\xbb\xbf{}", b"}{", b"[" * 2000]
    ),
    st.binary(max_size=9).filter(lambda line: b"\n" not in line),
)


@settings(max_examples=300, deadline=None)
@given(lines=st.lists(LINES, max_size=4), end=st.sampled_from([b"", b"\n", b"\r\n"]))
@example(lines=[orjson.dumps(GOOD) * 2, b"", orjson.dumps(GOOD)], end=b"\n")
@example(lines=[b'{"filename":"a","caption_or_tags":"fox","width":8,"height":8,"note":"\xff"}'], end=b"\n")
def test_the_scan_of_a_file_and_of_a_line_agree(lines: list[bytes], end: bytes):
    with TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        path.write_bytes(b"".join(line + end for line in lines) if end else b"\n".join(lines))
        scanned = scan(path)
        content = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    rows = [
        (number, parse(line)) for number, line in enumerate(content.split(b"\n"), start=1) if line.strip()
    ]
    good = [(number, row) for number, row in rows if not isinstance(row, BadRow)]
    assert scanned.columns["line"].tolist() == [number for number, _ in good]
    for name in ("width", "height", "caption_chars", "num_references"):
        assert scanned.columns[name].tolist() == [getattr(row, name) for _, row in good]
    assert [(problem.line) for problem in scanned.problems] == [
        number for number, row in rows if isinstance(row, BadRow)
    ]
    for number, row in rows:
        shown = row_of(number, content.split(b"\n")[number - 1])
        assert bool(shown.problem) == isinstance(row, BadRow), "the gallery shows what training leaves out"
