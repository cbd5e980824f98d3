"""Kohya's folders and TOML are read as Kohya reads them; settings without a counterpart are reported."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import orjson
import pytest

from flowloom.datasets.build.items import ORDERED
from flowloom.datasets.build.wildcards import MAX_VARIANTS
from flowloom.errors import DataError
from tests.datasets.build.images import built, greys, image_bytes, write


def counted(rows: list[dict[str, Any]]) -> Counter[tuple[str, str]]:
    return Counter((row["filename"], row["caption_or_tags"]) for row in rows)


def test_numbers_are_repeats_and_names_are_captions(tmp_path: Path) -> None:
    write(tmp_path / "in/3_sks fox/a.png", image_bytes(1))
    write(tmp_path / "in/3_sks fox/b.png", image_bytes(2))
    write(tmp_path / "in/3_sks fox/b.txt", "first line counts\nthe second does not\n")
    write(tmp_path / "in/1_Bär/c.png", image_bytes(3))
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
    write(tmp_path / "in/img/2_fox/a.png", image_bytes(1))
    write(tmp_path / "in/reg/1_animal/b.png", image_bytes(2))
    write(tmp_path / "in/log/x.txt", "")
    rows, report = built(tmp_path / "in", tmp_path / "d.jsonl", reg_weight=0.5)
    assert report.kind == "kohya"
    assert [(row["filename"], row["loss_weight"]) for row in rows] == [
        ("img/2_fox/a.png", 1.0),
        ("img/2_fox/a.png", 1.0),
        ("reg/1_animal/b.png", 0.5),
    ]


def test_files_that_kohya_would_not_read_are_reported(tmp_path: Path) -> None:
    write(tmp_path / "in/1_x/a.png", image_bytes(1))
    write(tmp_path / "in/1_x/deeper/b.png", image_bytes(2))
    write(tmp_path / "in/0_off/c.png", image_bytes(3))
    write(tmp_path / "in/d.png", image_bytes(4))
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
    write(tmp_path / "in/one/a.png", image_bytes(1))
    write(tmp_path / "in/one/b.png", image_bytes(2))
    write(tmp_path / "in/one/b.txt", "red, blue\n")
    write(tmp_path / "in/two/c.png", image_bytes(3))
    write(tmp_path / "in/two/c.cap", "red, blue, green")
    write(tmp_path / "in/three/d.png", image_bytes(4))
    write(tmp_path / "in/three/e.png", image_bytes(5))
    metadata = {
        "d": {"caption": "an image", "tags": "one, two"},
        str(tmp_path / "in/three/e.png"): {"tags": "three, four"},
        "gone": {"caption": "x"},
        "../two/c": {"caption": "y"},
        "odd": 7,
    }
    write(tmp_path / "in/three.json", orjson.dumps(metadata))
    return write(tmp_path / "in/set.toml", TOML)


def test_subsets_inherit_and_follow_kohyas_rules(tmp_path: Path, toml: Path) -> None:
    rows, report = built(toml, tmp_path / "d.jsonl", reg_weight=0.25)
    assert (report.kind, report.root) == ("kohya-toml", tmp_path / "in")
    assert greys(rows, report.root) == {
        1: ["sks fox"] * 2,
        2: ["red, blue"] * 2,
        3: ["photo, red, blue, green"],
        4: ["an image, one, two"],
        5: ["three, four"],
    }
    by_name = {row["filename"]: row for row in rows}
    assert by_name["one/b.png"]["is_tag_based"] is False  # keep_tokens: its first tag keeps its place
    assert (by_name["two/c.png"]["is_tag_based"], by_name["two/c.png"]["loss_weight"]) == (False, 0.25)
    assert by_name["three/e.png"]["is_tag_based"] is False
    assert [bad.where for bad in report.unusable] == [
        "three.json[gone]",
        "three.json[../two/c]",
        "three.json[odd]",
    ]
    remarks = " ".join(report.remarks)
    assert report.remarks[ORDERED] == 4
    assert "ignored: resolution belongs in the training configuration" in remarks
    assert "already read" in remarks


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[[datasets", "not valid TOML"),
        ("general = 1", "must be a table"),
        ("[[datasets]]\nresolution = 1", r"no \[\[datasets.subsets\]\]"),
        ("[[datasets]]\n[[datasets.subsets]]\nnum_repeats = 1", "image_dir is missing"),
        ("[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'x'\nnum_repeats = 'y'", "num_repeats is 'y'"),
        ("[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'x'", "no image.*cannot be listed"),
    ],
)
def test_a_wrong_toml_is_reported_in_one_sentence(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        built(write(tmp_path / "a.toml", text), tmp_path / "d.jsonl")


def with_toml(tmp_path: Path, subset: str, captions: dict[str, str]) -> Path:
    """A TOML of one subset with an image for each caption file."""
    for number, (name, text) in enumerate(captions.items()):
        write(tmp_path / f"in/pics/{name}", text)
        write(tmp_path / f"in/pics/{Path(name).stem}.png", image_bytes(number))
    return write(
        tmp_path / "in/set.toml", f'[[datasets]]\n[[datasets.subsets]]\nimage_dir = "pics"\n{subset}\n'
    )


KEYS = """caption_extension = "txt"
shuffle_caption = true
keep_tokens_separator = "|||"
secondary_separator = ";;;"
enable_wildcard = true
"""


def test_sd_scripts_marks_are_applied_and_none_is_trained(tmp_path: Path) -> None:
    captions = {
        "1.txt": "teapot, brass ||| steam, kitchen;;;evening, {warm|cold} light",
        "2.txt": "teapot ||| {side|top} view\n\na brass teapot\n",
        "3.txt": "teapot ||| lid open ||| masterpiece",
        "4.txt": "plain, tags, {{only}}, {one}",
    }
    rows, report = built(with_toml(tmp_path, KEYS, captions), tmp_path / "d.jsonl")
    assert [row["caption_or_tags"] for row in rows] == [
        [f"teapot, brass, steam, kitchen,evening, {light} light" for light in ("warm", "cold")],
        ["teapot, side view", "teapot, top view", "a brass teapot", "a brass teapot"],
        "teapot, lid open, masterpiece",
        "plain, tags, {only}, one",
    ]
    assert [row["is_tag_based"] for row in rows] == [False, False, False, True]
    assert report.remarks[ORDERED] == 3
    assert not [text for text in report.remarks if "trained as text" in text]


@pytest.mark.parametrize(("kept", "is_shuffled"), [(0, True), (1, False), (3, False)])
def test_tags_that_keep_their_places_are_not_shuffled(tmp_path: Path, kept: int, is_shuffled: bool) -> None:
    keys = f'caption_extension = ".txt"\nshuffle_caption = true\nkeep_tokens = {kept}'
    rows, report = built(with_toml(tmp_path, keys, {"1.txt": "sks fox, red, snow"}), tmp_path / "d.jsonl")
    assert [row["is_tag_based"] for row in rows] == [is_shuffled]
    assert report.remarks[ORDERED] == (not is_shuffled)
    with pytest.raises(DataError, match="keep_tokens is -1"):
        built(with_toml(tmp_path, "shuffle_caption = true\nkeep_tokens = -1", {}), tmp_path / "e.jsonl")


def test_without_those_keys_the_marks_are_reported(tmp_path: Path) -> None:
    captions = {"1.txt": "a ||| b;;;c, {d|e}", "2.txt": "a {plain} b | c ; d"}
    rows, report = built(with_toml(tmp_path, 'caption_extension = ".txt"', captions), tmp_path / "d.jsonl")
    assert rows[0]["caption_or_tags"] == captions["1.txt"]
    remarks = [text for text in report.remarks if text.startswith("trained as text")]
    assert [report.examples[text] for text in remarks] == [["1.png"]] * 3


def test_prefix_and_suffix_frame_every_line_and_alternatives_in_them_count(tmp_path: Path) -> None:
    keys = 'caption_extension = ".txt"\nenable_wildcard = true\n'
    keys += 'caption_prefix = "{oil|ink},"\ncaption_suffix = "end"'
    rows, _ = built(with_toml(tmp_path, keys, {"1.txt": "one\ntwo"}), tmp_path / "d.jsonl")
    assert rows[0]["caption_or_tags"] == ["oil, one end", "ink, one end", "oil, two end", "ink, two end"]


def test_tags_follow_every_line_of_a_caption(tmp_path: Path) -> None:
    write(tmp_path / "in/pics/1.png", image_bytes(1))
    write(tmp_path / "in/meta.json", orjson.dumps({"1": {"caption": "one\ntwo", "tags": "a, b\nc"}}))
    keys = 'metadata_file = "meta.json"\nenable_wildcard = true'
    rows, _ = built(with_toml(tmp_path, keys, {}), tmp_path / "d.jsonl")
    assert rows[0]["caption_or_tags"] == ["one, a, b,c", "two, a, b,c"]


def test_too_many_alternatives_are_reduced_and_reported(tmp_path: Path) -> None:
    rows, report = built(
        with_toml(tmp_path, KEYS, {"1.txt": "{a|b|c|d} {a|b|c|d} {a|b|c|d} {a|b}"}), tmp_path / "d.jsonl"
    )
    captions = rows[0]["caption_or_tags"]
    assert (len(captions), len(set(captions))) == (MAX_VARIANTS, MAX_VARIANTS)
    assert {caption[0] for caption in captions} == set("abcd")
    assert any("combinations" in text for text in report.remarks)


def test_a_folder_with_two_kinds_of_captions_gives_both(tmp_path: Path) -> None:
    first = with_toml(tmp_path, 'caption_extension = ".txt"\nnum_repeats = 2', {"1.txt": "red, blue, green"})
    write(tmp_path / "in/pics/1.caption", "an image of one")
    more = '[[datasets.subsets]]\nimage_dir = "pics"\ncaption_extension = ".caption"\n'
    rows, _ = built(write(first, first.read_text() + more), tmp_path / "d.jsonl")
    assert counted(rows) == {("1.png", "red, blue, green"): 2, ("1.png", "an image of one"): 1}


def test_windows_paths_are_reported_with_a_hint(tmp_path: Path) -> None:
    path = with_toml(tmp_path, 'caption_extension = ".txt"', {"1.txt": "x"})
    write(path, path.read_text().replace('"pics"', "'D:\\sets\\pics'"))
    with pytest.raises(DataError, match=r"image_dir D:\\sets\\pics is a Windows path"):
        built(path, tmp_path / "d.jsonl")
    write(path, path.read_text().replace("'D:\\sets\\pics'", '"D:\\sets\\pics"'))
    with pytest.raises(DataError, match=r"not valid TOML.*'single quotes'"):
        built(path, tmp_path / "d.jsonl")
    write(path, path.read_text().replace('"D:\\sets\\pics"', "'..\\in\\pics'"))
    assert built(path, tmp_path / "d.jsonl")[1].num_rows == 1
