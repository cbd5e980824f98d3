"""An exported dataset comes back unchanged: the same images with the same captions, as often."""

from __future__ import annotations

import tempfile
import tomllib
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flowloom.datasets.build.export import ExportOptions, ExportReport, Target, export
from flowloom.errors import DataError
from tests.datasets.build.images import built, greys, image_bytes, write

OUTPUTS: dict[Target, str] = {
    "kohya": "kohya",
    "kohya-toml": "kohya.toml",
    "webdataset": "shards",
    "parquet": "data.parquet",
}


def exported(jsonl: Path, target: Target, output: Path, **options: Any) -> ExportReport:
    return export(jsonl, target, output, ExportOptions(**options), lambda report: None)


@pytest.fixture
def jsonl(tmp_path: Path) -> Path:
    """A dataset with folders, repeats, tags, and names that other systems trip over."""
    samples = [
        ("a.png", "a cat on a mat, asleep"),
        ("a-2.png", "another"),
        ("ordner/Bär 🐻.png", "1girl, blue_hair, smile, solo"),
        ("ordner/deep/comma, \"quoted\" 'x'.jpg", 'it\'s "quoted", \\ and = # [x]'),
        ("ordner_deep/a.png", "same name, other folder"),
        ("A.B.c.png", "dots"),
    ]
    for number, (name, caption) in enumerate(samples):
        suffix = Path(name).suffix
        write(tmp_path / "in" / name, image_bytes(number * 30, (20 + number, 30), suffix))
        write((tmp_path / "in" / name).with_suffix(".txt"), caption)
    built(tmp_path / "in", tmp_path / "d.jsonl")
    lines = (tmp_path / "d.jsonl").read_bytes().splitlines()
    (cat,) = (line for line in lines if b'"a.png"' in line)
    (tags,) = (line for line in lines if b"blue_hair" in line)
    repeated = [*lines, cat, tags, cat]
    (tmp_path / "d.jsonl").write_bytes(b"\n".join(repeated) + b"\n")
    return tmp_path / "d.jsonl"


def rows_of(jsonl: Path) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in jsonl.read_bytes().splitlines()]


@pytest.mark.parametrize("target", OUTPUTS)
def test_images_captions_and_repeats_come_back(jsonl: Path, tmp_path: Path, target: Target) -> None:
    report = exported(jsonl, target, tmp_path / OUTPUTS[target])
    assert (report.num_rows, report.unusable) == (9, [])
    rows, back = built(tmp_path / OUTPUTS[target], tmp_path / "back.jsonl")
    assert not back.unusable
    assert greys(rows, back.root) == greys(rows_of(jsonl), tmp_path / "in")
    tags = {row["caption_or_tags"]: row["is_tag_based"] for row in rows}
    assert tags == {row["caption_or_tags"]: row["is_tag_based"] for row in rows_of(jsonl)}


@pytest.mark.parametrize("target", ["webdataset", "parquet"])
def test_archives_keep_names_and_weights(jsonl: Path, tmp_path: Path, target: Target) -> None:
    unique = list(dict.fromkeys(jsonl.read_bytes().splitlines()))
    weighted = [orjson.dumps(orjson.loads(line) | {"loss_weight": 0.25}) for line in unique]
    jsonl.write_bytes(b"\n".join(weighted) + b"\n")
    exported(jsonl, target, tmp_path / OUTPUTS[target])
    rows, _ = built(tmp_path / OUTPUTS[target], tmp_path / "back.jsonl")
    expected = {row["filename"]: row for row in rows_of(jsonl)}
    assert {row["filename"]: row for row in rows} == expected


def test_kohya_s_folders_are_named_for_repeats(jsonl: Path, tmp_path: Path) -> None:
    exported(jsonl, "kohya", tmp_path / "kohya", name="fox")
    names = sorted(path.name for path in (tmp_path / "kohya").iterdir())
    assert names == ["1_fox", "1_ordner_deep", "1_ordner_deep-2", "2_ordner", "3_fox"]
    assert (tmp_path / "kohya/2_ordner/Bär 🐻.txt").read_text() == "1girl, blue_hair, smile, solo\n"


def test_kohya_s_toml_is_toml_and_leaves_the_images(jsonl: Path, tmp_path: Path) -> None:
    before = sorted((tmp_path / "in").rglob("*"))
    exported(jsonl, "kohya-toml", tmp_path / "kohya.toml")
    assert sorted((tmp_path / "in").rglob("*")) == before
    config = tomllib.loads((tmp_path / "kohya.toml").read_text())
    subsets = config["datasets"][0]["subsets"]
    assert sorted(subset["num_repeats"] for subset in subsets) == [1, 1, 1, 2, 3]
    for subset in subsets:
        for name, fields in orjson.loads(Path(subset["metadata_file"]).read_bytes()).items():
            assert Path(name).is_file()
            assert fields.get("caption") or fields.get("tags")
            assert subset["shuffle_caption"] == ("tags" in fields)


@pytest.mark.parametrize("link", ["copy", "hard", "soft"])
def test_images_are_copied_or_linked(jsonl: Path, tmp_path: Path, link: str) -> None:
    exported(jsonl, "kohya", tmp_path / "kohya", link=link)
    placed = tmp_path / "kohya/2_ordner/Bär 🐻.png"
    original = tmp_path / "in/ordner/Bär 🐻.png"
    assert placed.read_bytes() == original.read_bytes()
    assert placed.is_symlink() == (link == "soft")
    assert placed.samefile(original) == (link != "copy")


def test_images_of_one_stem_get_separate_captions(tmp_path: Path) -> None:
    for name, grey in (("a.png", 10), ("a.jpg", 90), ("A.png", 200)):
        write(tmp_path / "in" / name, image_bytes(grey, suffix=Path(name).suffix))
    names = {"a.png": "png", "a.jpg": "jpg", "A.png": "capital"}
    csv = "file,caption\n" + "".join(f"{name},{caption}\n" for name, caption in names.items())
    write(tmp_path / "in/list.csv", csv)
    _, report = built(tmp_path / "in/list.csv", tmp_path / "d.jsonl")
    assert report.num_rows == 3
    for target in OUTPUTS:
        exported(tmp_path / "d.jsonl", target, tmp_path / OUTPUTS[target])
        rows, report = built(tmp_path / OUTPUTS[target], tmp_path / f"{target}.jsonl")
        assert greys(rows, report.root) == {10: ["png"], 90: ["jpg"], 200: ["capital"]}, target


def test_several_captions_of_an_image_stay_apart(tmp_path: Path) -> None:
    write(tmp_path / "in/a.png", image_bytes(5))
    write(tmp_path / "in/list.csv", "file,caption\na.png,one\na.png,two\na.png,\n")
    built(tmp_path / "in/list.csv", tmp_path / "d.jsonl")
    for target in OUTPUTS:
        report = exported(tmp_path / "d.jsonl", target, tmp_path / OUTPUTS[target])
        rows, back = built(tmp_path / OUTPUTS[target], tmp_path / f"{target}.jsonl")
        captions = sorted(greys(rows, back.root)[5])
        if target == "kohya-toml":
            assert captions == ["one", "two"]
            assert "empty caption" in report.unusable[0].reason
        else:
            assert captions == ["", "one", "two"]


def test_rows_that_cannot_be_written_are_reported(jsonl: Path, tmp_path: Path) -> None:
    extra = [
        b"{broken",
        orjson.dumps({"filename": "gone.png", "caption_or_tags": "x", "width": 1, "height": 1}),
        orjson.dumps({"filename": "../d.jsonl", "caption_or_tags": "x", "width": 1, "height": 1}),
        orjson.dumps({"filename": "a.png", "caption_or_tags": "x", "width": 0, "height": 1}),
        orjson.dumps({"filename": "a.png", "width": 1, "height": 1}),
    ]
    jsonl.write_bytes(jsonl.read_bytes() + b"\n".join(extra) + b"\n")
    for target in OUTPUTS:
        report = exported(jsonl, target, tmp_path / OUTPUTS[target])
        assert report.num_rows == 9
        assert [bad.where for bad in report.unusable] == [f"d.jsonl:{line}" for line in range(10, 15)]


def test_an_output_that_is_in_use_is_left_alone(jsonl: Path, tmp_path: Path) -> None:
    write(tmp_path / "kohya/mine.txt", "mine")
    with pytest.raises(DataError, match="not an empty folder"):
        exported(jsonl, "kohya", tmp_path / "kohya")
    for target in OUTPUTS:
        with pytest.raises(DataError, match=r"cannot be written|not an empty folder"):
            exported(jsonl, target, jsonl / "below a file")
    with pytest.raises(DataError, match="no such file"):
        exported(tmp_path / "no.jsonl", "kohya", tmp_path / "other")


def test_shards_end_where_they_should(tmp_path: Path) -> None:
    rows = []
    for i in range(6):
        write(tmp_path / f"in/{i}.png", image_bytes(i) + bytes(400_000))
        rows.append({"filename": f"{i}.png", "caption_or_tags": str(i), "width": 40, "height": 30})
    write(tmp_path / "d.jsonl", b"\n".join(orjson.dumps(row) for row in rows))
    report = exported(
        tmp_path / "d.jsonl", "webdataset", tmp_path / "s", images_dir=tmp_path / "in", shard_mib=1
    )
    assert [path.name for path in report.files] == ["d-000000.tar", "d-000001.tar"]
    back, built_report = built(tmp_path / "s", tmp_path / "back.jsonl")
    assert greys(back, built_report.root) == {i: [str(i)] for i in range(6)}


captions = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=40)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(captions, min_size=1, max_size=4), target=st.sampled_from(sorted(OUTPUTS)))
def test_any_caption_survives(tmp_path: Path, texts: list[str], target: Target) -> None:
    folder = Path(tempfile.mkdtemp(dir=tmp_path))
    lines = []
    for number, text in enumerate(texts):
        write(folder / f"in/{number}.png", image_bytes(number * 20))
        text = " ".join(text.split()) or "x"
        lines.append({"filename": f"{number}.png", "caption_or_tags": text, "width": 40, "height": 30})
    write(folder / "d.jsonl", b"\n".join(orjson.dumps(line) for line in lines))
    exported(folder / "d.jsonl", target, folder / OUTPUTS[target], images_dir=folder / "in")
    rows, report = built(folder / OUTPUTS[target], folder / "back.jsonl")
    expected = {number * 20: [line["caption_or_tags"]] for number, line in enumerate(lines)}
    assert greys(rows, report.root) == expected


def test_captions_that_alternate_come_back(tmp_path: Path) -> None:
    write(tmp_path / "in/a.png", image_bytes(1))
    write(tmp_path / "in/a.txt", "one\n\n two  three \n")
    write(tmp_path / "in/b.png", image_bytes(2))
    write(tmp_path / "in/b.json", orjson.dumps({"caption": ["four", "five"]}))
    write(tmp_path / "in/c.png", image_bytes(3))
    write(tmp_path / "in/c.txt", "alone")
    rows, _ = built(tmp_path / "in", tmp_path / "d.jsonl", each_line=True)
    expected = {1: [["one", "two three"]], 2: [["four", "five"]], 3: ["alone"]}
    assert greys(rows, tmp_path / "in") == expected
    for target in OUTPUTS:
        report = exported(tmp_path / "d.jsonl", target, tmp_path / OUTPUTS[target])
        assert not report.unusable
        rows, back = built(tmp_path / OUTPUTS[target], tmp_path / f"{target}.jsonl")
        if target == "kohya":
            assert greys(rows, back.root) == {1: ["one"], 2: ["four"], 3: ["alone"]}
            assert any("enable_wildcard" in remark for remark in report.remarks)
        else:
            assert greys(rows, back.root) == expected, target
