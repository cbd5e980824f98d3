"""Each problem of a dataset is found, reported in three formats, and repaired in a new file."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flowloom.cli.lint import fix, lint
from flowloom.data.metadata import read_metadata
from flowloom.datasets.lint.captions import repaired_text


def image(seed: int, width: int = 96, height: int = 96) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 7, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def row(
    name: str, caption: str = "an image", size: tuple[int, int] = (96, 96), **more: Any
) -> dict[str, Any]:
    return {"filename": name, "caption_or_tags": caption, "width": size[0], "height": size[1], **more}


@pytest.fixture
def flawed(tmp_path: Path) -> Path:
    """A JSONL with one of everything; the first two rows are well."""
    for i in range(6):
        image(i).save(tmp_path / f"{i}.png")
    (tmp_path / "twin.png").write_bytes((tmp_path / "0.png").read_bytes())
    image(1).resize((64, 64)).save(tmp_path / "near.jpg", quality=85)
    image(7, 300, 80).save(tmp_path / "wide.png")
    image(8, 40, 40).save(tmp_path / "tiny.png")
    image(9, 300, 300).save(tmp_path / "cut.jpg", quality=95)
    data = (tmp_path / "cut.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(data[: len(data) // 2])
    (tmp_path / "no.png").write_bytes(b"not an image")
    lines = [
        row("0.png"),
        row("1.png", "one, two, three", is_tag_based=True),
        row("twin.png"),
        row("near.jpg", size=(64, 64)),
        row("wide.png", size=(300, 80)),
        row("tiny.png", size=(40, 40)),
        row("cut.jpg", size=(300, 300)),
        row("no.png"),
        row("gone.png"),
        row("2.png", size=(50, 60)),
        row("3.png", "  "),
        row("4.png", "word " * 200),
        row("5.png", "caf\u00c3\u00a9", loss_weight=0.0),
        row("0.png"),
        {"filename": "1.png", "caption_or_tags": "an image", "width": 0, "height": 3},
    ]
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + "{half")
    return path


def found(path: Path, capsys: pytest.CaptureFixture[str], *more: str) -> dict[str, list[int]]:
    lint([str(path), "--json", "--resolution", "64", *more])
    lines: dict[str, list[int]] = {}
    for finding in json.loads(capsys.readouterr().out)["findings"]:
        lines.setdefault(finding["kind"], []).append(finding["line"])
    return {kind: sorted(found) for kind, found in lines.items()}


def test_one_finding_of_each_kind_is_located(flawed: Path, tiny_t5: Path, capsys):
    assert found(flawed, capsys, "--tokenizer", str(tiny_t5), "--max-tokens", "200") == {
        "broken_row": [15, 16],
        "missing_file": [9],
        "damaged_file": [7, 8],
        "wrong_size": [10],
        "duplicate": [1, 3],
        "near_duplicate": [2, 4],
        "small": [6],
        "left_out": [5],
        "empty_caption": [11],
        "long_caption": [12],
        "encoding": [13],
        "repeated_row": [14],
        "no_weight": [13],
    }


def test_the_text_has_file_line_and_hint(flawed: Path, capsys):
    assert lint([str(flawed), "--resolution", "64", "--batch-size", "4"]) == 2
    text = capsys.readouterr().out
    assert f"{flawed}:9: gone.png: no such file" in text
    assert "recorded as 50 x 60, but the image is 96 x 96" in text
    assert "40 x 40 is upscaled 1.60 times to 64 x 64" in text
    assert "tokens     not counted" in text
    assert re.search(r"64x64 +13 +3 batches and 1 more", text)


def test_the_page_is_complete_and_escapes_its_content(flawed: Path, tmp_path: Path, capsys):
    with flawed.open("a") as file:
        file.write("\n" + json.dumps(row("<script>alert(1)</script>.png")))
    lint([str(flawed), "--resolution", "64", "--html", str(tmp_path / "lint.html")])
    html = (tmp_path / "lint.html").read_text()
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    assert html.count("data:image/jpeg;base64,") >= 8
    assert not re.search(r"""(?:src|href)=["'](?!data:image|#)""", html)
    assert "url(" not in html


def test_an_incomplete_search_is_reported_in_every_format(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Images on plain paper: most of their hashes' bits are equal."""
    rows = []
    for i in range(9):
        image = Image.new("RGB", (64, 64), "white")
        image.paste((20, 20, 20 + i), (4 + 5 * i, 30, 12 + 5 * i, 44))
        image.save(tmp_path / f"{i}.png")
        rows.append(json.dumps(row(f"{i}.png", size=(64, 64))))
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(rows))
    lint([str(data), "--resolution", "64"])
    assert "neighbours" not in capsys.readouterr().out
    monkeypatch.setattr("flowloom.datasets.lint.near_duplicates.WINDOW", 5)
    lint([str(data), "--resolution", "64", "--html", str(tmp_path / "lint.html")])
    message = "near duplicates among them may be missing"
    assert message in capsys.readouterr().out
    assert message in (tmp_path / "lint.html").read_text()
    lint([str(data), "--resolution", "64", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert 5 < report["num_crowded"] <= 9
    assert message in report["crowded_message"]


def test_a_good_dataset_ends_with_status_0(tmp_path: Path, capsys):
    image(1).save(tmp_path / "a.png")
    (tmp_path / "data.jsonl").write_text(json.dumps(row("a.png")))
    assert lint([str(tmp_path / "data.jsonl"), "--resolution", "64"]) == 0
    assert "0 errors, 0 warnings" in capsys.readouterr().out


def test_a_fixed_copy_is_clean_and_the_original_is_kept(flawed: Path, tmp_path: Path, capsys):
    before = {path.name: path.read_bytes() for path in flawed.parent.iterdir()}
    out = tmp_path / "new.jsonl"
    assert fix([str(flawed), "-o", str(out), "--near", "--drop-empty"]) == 0
    printed = capsys.readouterr().out
    assert {name: (flawed.parent / name).read_bytes() for name in before} == before
    assert not list(tmp_path.glob("*.partial"))
    left = found(out, capsys)
    assert left == {"repeated_row": [8, 9], "small": [3], "left_out": [2], "no_weight": [7]} | {
        kind: lines
        for kind, lines in left.items()
        if kind in ("repeated_row", "small", "left_out", "no_weight")
    }
    names = [json.loads(line)["filename"] for line in out.read_text().splitlines()]
    assert names == ["0.png", "1.png", "wide.png", "tiny.png", "2.png", "4.png", "5.png", "0.png", "1.png"]
    for line, action in (
        (3, "row removed: the same image as line 1, which is kept"),
        (4, "row removed: similar to line 2, which is kept"),
        (9, "row removed: no such file"),
        (10, "size: 50 x 60 is now 96 x 96"),
        (13, "caption_or_tags: cafÃ© is now café"),
        (15, "size: 0 x 3 is now 96 x 96"),
        (16, "row removed: not JSON"),
    ):
        assert f"{flawed}:{line}: {action}" in printed
    assert f"written    {out}: 9 of 15 rows" in printed


def test_rows_with_wrong_types_are_repaired(tmp_path: Path, capsys):
    for seed, name in enumerate("abc"):
        image(seed).save(tmp_path / f"{name}.png")
    rows = [
        {"filename": "a.png", "caption_or_tags": ["one", "two"], "is_tag_based": "true", "loss_weight": 3},
        {"filename": ".\\b.png", "caption_or_tags": "x", "width": "96", "height": None, "loss_weight": "0.5"},
    ]
    (tmp_path / "data.jsonl").write_bytes(
        b"\xef\xbb\xbf" + "\r\n".join(map(json.dumps, rows)).encode() + b'\n{"filename": "c.png", '
        b'"caption_or_tags": "caf\xe9", "width": 96, "height": 96}'
    )
    assert fix([str(tmp_path / "data.jsonl"), "-o", str(tmp_path / "new.jsonl")]) == 0
    fixed = read_metadata(tmp_path / "new.jsonl")
    assert not fixed.problems
    assert [fixed.row(i).caption for i in range(3)] == ["one, two", "x", "café"]
    assert [fixed.row(i).is_tag_based for i in range(3)] == [True, False, False]
    assert [fixed.row(i).loss_weight for i in range(3)] == [1.0, 0.5, 1.0]
    assert fixed.row(1).filename == "b.png"


def test_fix_overwrites_nothing(flawed: Path):
    from flowloom.errors import DataError

    with pytest.raises(DataError, match="exists already"):
        fix([str(flawed), "-o", str(flawed)])


@pytest.mark.parametrize("text", ["café", "naïve façade", "Ärger, Übermut", "日本語", "плюс", "a — b", "Â"])
def test_only_wrongly_decoded_text_is_decoded_again(text: str):
    assert repaired_text(text) == text
    for name in ("latin-1", "cp1252"):
        wrong = text.encode().decode(name, errors="replace")
        if "\ufffd" not in wrong and text.isascii() is False and name == "latin-1" and text[0] in "cnÄ":
            assert repaired_text(wrong) == text
