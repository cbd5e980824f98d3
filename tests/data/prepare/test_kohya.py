"""Kohya's folders and TOML mean here what they mean to Kohya; what has no counterpart is said."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import orjson
import pytest

from flowloom.errors import DataError
from tests.data.prepare.pictures import built, greys, picture, write


def counted(rows: list[dict[str, Any]]) -> Counter[tuple[str, str]]:
    return Counter((row["filename"], row["caption_or_tags"]) for row in rows)


def test_numbers_are_repeats_and_names_are_captions(tmp_path: Path) -> None:
    write(tmp_path / "in/3_sks fox/a.png", picture(1))
    write(tmp_path / "in/3_sks fox/b.png", picture(2))
    write(tmp_path / "in/3_sks fox/b.txt", "first line counts\nthe second does not\n")
    write(tmp_path / "in/1_Bär/c.png", picture(3))
    rows, report = built(tmp_path / "in", tmp_path / "d.jsonl")
    assert report.kind == "kohya"
    assert counted(rows) == {
        ("3_sks fox/a.png", "sks fox"): 3,
        ("3_sks fox/b.png", "first line counts"): 3,
        ("1_Bär/c.png", "Bär"): 1,
    }
    rows, _ = built(tmp_path / "in", tmp_path / "d.jsonl", with_repeats=False)
    assert len(rows) == 3


def test_the_gui_s_folders_are_known(tmp_path: Path) -> None:
    write(tmp_path / "in/img/2_fox/a.png", picture(1))
    write(tmp_path / "in/reg/1_animal/b.png", picture(2))
    write(tmp_path / "in/log/x.txt", "")
    rows, report = built(tmp_path / "in", tmp_path / "d.jsonl", reg_weight=0.5)
    assert report.kind == "kohya"
    assert [(row["filename"], row["loss_weight"]) for row in rows] == [
        ("img/2_fox/a.png", 1.0),
        ("img/2_fox/a.png", 1.0),
        ("reg/1_animal/b.png", 0.5),
    ]


def test_what_kohya_would_not_read_is_said(tmp_path: Path) -> None:
    write(tmp_path / "in/1_x/a.png", picture(1))
    write(tmp_path / "in/1_x/deeper/b.png", picture(2))
    write(tmp_path / "in/0_off/c.png", picture(3))
    write(tmp_path / "in/d.png", picture(4))
    rows, report = built(tmp_path / "in", tmp_path / "d.jsonl", kind="kohya")
    assert [row["filename"] for row in rows] == ["1_x/a.png"]
    assert report.remarks.total() == 3


TOML = """
[general]
caption_extension = ".txt"
shuffle_caption = true
keep_tokens = 1

[[datasets]]
resolution = 1024
  [[datasets.subsets]]
  image_dir = "one"
  num_repeats = 2
  class_tokens = "sks fox"
  [[datasets.subsets]]
  image_dir = "two"
  caption_extension = ".cap"
  shuffle_caption = false
  caption_prefix = "photo,"
  is_reg = true
  [[datasets.subsets]]
  image_dir = "three"
  metadata_file = "three.json"

[[datasets]]
resolution = 512
  [[datasets.subsets]]
  image_dir = "one"
  num_repeats = 2
"""


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    """A TOML with every kind of subset."""
    write(tmp_path / "in/one/a.png", picture(1))
    write(tmp_path / "in/one/b.png", picture(2))
    write(tmp_path / "in/one/b.txt", "red, blue\n")
    write(tmp_path / "in/two/c.png", picture(3))
    write(tmp_path / "in/two/c.cap", "red, blue, green")
    write(tmp_path / "in/three/d.png", picture(4))
    write(tmp_path / "in/three/e.png", picture(5))
    metadata = {
        "d": {"caption": "a picture", "tags": "one, two"},
        str(tmp_path / "in/three/e.png"): {"tags": "three, four"},
        "gone": {"caption": "x"},
        "../two/c": {"caption": "y"},
        "odd": 7,
    }
    write(tmp_path / "in/three.json", orjson.dumps(metadata))
    return write(tmp_path / "in/set.toml", TOML)


def test_subsets_inherit_and_keep_kohya_s_rules(tmp_path: Path, toml: Path) -> None:
    rows, report = built(toml, tmp_path / "d.jsonl", reg_weight=0.25)
    assert (report.kind, report.root) == ("kohya-toml", tmp_path / "in")
    assert greys(rows, report.root) == {
        1: ["sks fox"] * 2,
        2: ["red, blue"] * 2,
        3: ["photo, red, blue, green"],
        4: ["a picture, one, two"],
        5: ["three, four"],
    }
    by_name = {row["filename"]: row for row in rows}
    assert by_name["one/b.png"]["is_tag_based"] is True
    assert (by_name["two/c.png"]["is_tag_based"], by_name["two/c.png"]["loss_weight"]) == (False, 0.25)
    assert by_name["three/e.png"]["is_tag_based"] is True
    assert [bad.place for bad in report.unusable] == [
        "three.json[gone]",
        "three.json[../two/c]",
        "three.json[odd]",
    ]
    said = " ".join(report.remarks)
    assert "keep_tokens has no counterpart here" in said
    assert "resolution is the training configuration's here" in said
    assert "read before" in said


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[[datasets", "not readable as TOML"),
        ("general = 1", "must be a table"),
        ("[[datasets]]\nresolution = 1", r"no \[\[datasets.subsets\]\]"),
        ("[[datasets]]\n[[datasets.subsets]]\nnum_repeats = 1", "no image_dir"),
        ("[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'x'\nnum_repeats = 'y'", "num_repeats is 'y'"),
        ("[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'x'", "not one picture.*cannot be listed"),
    ],
)
def test_a_wrong_toml_is_said_in_one_sentence(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        built(write(tmp_path / "a.toml", text), tmp_path / "d.jsonl")
