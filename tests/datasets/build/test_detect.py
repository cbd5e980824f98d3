"""The format of a source is detected; skipped files are counted; ambiguous sources are refused."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flowloom.cli.dataset import dataset as cli
from flowloom.datasets.build.detect import AmbiguousSource, detect
from flowloom.datasets.build.options import BuildOptions
from flowloom.datasets.build.repeats import MAX_REPEATS
from flowloom.datasets.build.update import folder_rows, update
from flowloom.errors import DataError
from flowloom.tasks.dataset_build import BUILD
from flowloom.tasks.dataset_lint import LINT
from tests.datasets.build.images import built, image_bytes, write


def images(folder: Path, *names: str, caption: str | None = "a fox") -> Path:
    """Images, each with a caption file unless that is None."""
    for number, name in enumerate(names):
        write(folder / f"{name}.png", image_bytes(number))
        if caption is not None:
            write(folder / f"{name}.txt", f"{caption} {number}\nsecond line")
    return folder


def kind(folder: Path) -> str:
    return detect(str(folder), BuildOptions()).checked().kind


@pytest.mark.parametrize(
    "names",
    [
        ["2023_spring", "2024_autumn"],
        ["01_front", "02_side", "03_back"],
        ["20230514_trip"],
        ["512_faces", "1024_faces"],
        [f"{MAX_REPEATS + 1}_x"],
        ["007_bond"],
        ["10_fox", "2023_spring"],
    ],
)
def test_numbers_that_are_no_plausible_repeats_are_no_repeats(tmp_path: Path, names: list[str]):
    for name in names:
        images(tmp_path / "in" / name, "a", "b")
    rows, report = built(tmp_path / "in", tmp_path / "d.jsonl")
    assert (report.kind, len(rows)) == ("folder", 2 * len(names))
    assert "no plausible number" in report.why


@pytest.mark.parametrize(
    ("names", "rows"),
    [
        (["10_fox"], 10),
        (["1_fox"], 1),
        (["3_sks fox", "1_Bär"], 4),
        (["5_a", "5_b"], 10),
        ([f"{MAX_REPEATS}_x"], MAX_REPEATS),
        (["img/10_fox", "reg/1_animal", "log/x"], 11),
        (["10_fox", "masks", "logs"], 10),
    ],
)
def test_folders_named_as_kohyas_are_repeated(tmp_path: Path, names: list[str], rows: int):
    for name in names:
        images(tmp_path / "in" / name, "a")
    written, report = built(tmp_path / "in", tmp_path / "d.jsonl")
    assert (report.kind, len(written)) == ("kohya", rows)
    assert "REPEATS_NAME" in report.why


@pytest.mark.parametrize(
    "names",
    [["1_front", "2_side", "3_back"], ["1_a", "2_b"], ["10_fox", "den"], ["10_fox", "."], ["0_x", "1_y"]],
)
def test_folders_that_may_be_kohyas_or_not_are_ambiguous(tmp_path: Path, names: list[str]):
    for name in names:
        images(tmp_path / "in" / name, "a")
    with pytest.raises(AmbiguousSource, match="--from kohya or --from folder") as caught:
        built(tmp_path / "in", tmp_path / "d.jsonl")
    assert caught.value.choices == ("kohya", "folder")
    assert not (tmp_path / "d.jsonl").exists()
    assert built(tmp_path / "in", tmp_path / "d.jsonl", kind="folder")[1].num_rows == len(names)
    assert built(tmp_path / "in", tmp_path / "d.jsonl", kind="kohya")[1].kind == "kohya"
    with pytest.raises(AmbiguousSource):
        folder_rows(tmp_path / "in")


def test_the_command_line_names_the_flag_and_takes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for name in ("1_front", "2_back"):
        images(tmp_path / "in" / name, "a")
    arguments = ["build", str(tmp_path / "in"), "-o", str(tmp_path / "d.jsonl")]
    with pytest.raises(AmbiguousSource, match="--from kohya or --from folder"):
        cli(arguments)
    assert cli([*arguments, "--format", "kohya"]) == 0
    assert len((tmp_path / "d.jsonl").read_text().splitlines()) == 3
    assert cli([*arguments, "--from", "folder"]) == 0
    assert len((tmp_path / "d.jsonl").read_text().splitlines()) == 2
    assert "(folder)" in capsys.readouterr().out
    images(tmp_path / "plain", "a")
    assert cli(["build", str(tmp_path / "plain"), "-o", str(tmp_path / "d.jsonl")]) == 0
    assert "detected   folder: 1 of 1 images have caption files" in capsys.readouterr().out


def test_the_studio_asks_before_anything_starts(tmp_path: Path):
    for name in ("1_front", "2_back"):
        images(tmp_path / "in" / name, "a")
    config = {"source_path": str(tmp_path / "in"), "out_path": str(tmp_path / "d.jsonl")}
    for task, given in ((BUILD, config), (LINT, {"source_path": config["source_path"]})):
        (problem,) = task.check(given)
        assert (problem.where, "kohya" in problem.text, "folder" in problem.text) == (
            "form",
            True,
            True,
        )
        assert not task.check(given | {"form": "folder"})


STRAY = {
    "metadata.jsonl": b'{"file_name": "1.png", "text": "an old caption"}\n',
    "metadata.csv": b"file_name,text\n1.png,old\n",
    "state.json": b'{"window": [10, 20], "last": "1.png"}',
    "dataset_dict.json": b'{"splits": ["train"]}',
    "notes.parquet": b"x",
    "backup.tar": b"x",
    "metadata.parquet": b"PAR1",
    "README.json": b"{}",
}


@pytest.mark.parametrize("stray", STRAY)
def test_a_stray_file_hides_no_captioned_image(tmp_path: Path, stray: str):
    images(tmp_path / "in", "1", "2", "3")
    write(tmp_path / "in" / stray, STRAY[stray])
    rows, report = built(tmp_path / "in", tmp_path / "d.jsonl")
    assert (report.kind, report.why) == ("folder", "3 of 3 images have caption files")
    assert [row["caption_or_tags"] for row in rows] == [f"a fox {i} second line" for i in range(3)]
    assert any("not read" in text or "not an image" in text for text in report.remarks)


def test_a_table_of_other_images_than_the_caption_files_is_ambiguous(tmp_path: Path):
    images(tmp_path / "in", "1", "2")
    images(tmp_path / "in", "3", caption=None)
    write(
        tmp_path / "in/metadata.jsonl",
        '{"file_name": "2.png", "text": "t"}\n{"file_name": "3.png", "text": "t"}',
    )
    with pytest.raises(
        AmbiguousSource, match=r"2 of 3 images have caption files, and metadata\.jsonl describes 2"
    ) as caught:
        built(tmp_path / "in", tmp_path / "d.jsonl")
    assert caught.value.choices == ("folder", "table")
    rows, _ = built(tmp_path / "in", tmp_path / "d.jsonl", kind="table")
    assert [row["filename"] for row in rows] == ["2.png", "3.png"]


def test_a_table_of_images_without_caption_files_is_read_and_the_others_are_counted(tmp_path: Path):
    images(tmp_path / "in", "1", "2", "3", caption=None)
    write(tmp_path / "in/metadata.jsonl", '{"file_name": "2.png", "text": "t"}\n')
    rows, report = built(tmp_path / "in", tmp_path / "d.jsonl")
    assert (report.kind, [row["filename"] for row in rows]) == ("table", ["2.png"])
    assert report.remarks["not read: metadata.jsonl does not describe it"] == 2


def test_a_parquet_file_with_images_beside_captioned_ones_is_ambiguous(tmp_path: Path):
    images(tmp_path / "in", "1")
    table = pa.table({"image": [{"bytes": image_bytes(9), "path": None}], "text": ["x"]})
    pq.write_table(table, tmp_path / "in/train.parquet")
    with pytest.raises(AmbiguousSource, match="--from folder or --from parquet"):
        built(tmp_path / "in", tmp_path / "d.jsonl")
    assert built(tmp_path / "in", tmp_path / "d.jsonl", kind="parquet")[1].num_rows == 1


def test_an_update_reads_the_form_of_the_build(tmp_path: Path):
    images(tmp_path / "in", "1", "2", caption=None)
    write(tmp_path / "in/metadata.csv", "file_name,text\n1.png,one\n")
    built(tmp_path / "in", tmp_path / "d.jsonl", kind="folder", default_caption="x")
    images(tmp_path / "in", "1")
    assert update(tmp_path / "d.jsonl").kind == "folder"


def test_files_that_an_explicit_format_needs_are_named(tmp_path: Path):
    images(tmp_path / "in", "1")
    with pytest.raises(DataError, match=r"it has no metadata.jsonl or metadata.csv"):
        built(tmp_path / "in", tmp_path / "d.jsonl", kind="table")


def test_masks_are_not_trained_as_images(tmp_path: Path):
    images(tmp_path / "in/5_owl", "1", "2", "1-masklabel", "2-condlabel")
    for given in ("auto", "folder"):
        rows, report = built(tmp_path / "in", tmp_path / "d.jsonl", kind=given)
        assert set(Counter(row["filename"] for row in rows)) == {"5_owl/1.png", "5_owl/2.png"}
        assert report.remarks["not trained: a mask by its name (-masklabel)"] == 2


def test_an_empty_caption_file_hides_no_full_one(tmp_path: Path):
    images(tmp_path / "in", "1", "2", caption=None)
    write(tmp_path / "in/1.txt", "")
    write(tmp_path / "in/1.caption", "by caption file")
    write(tmp_path / "in/2.txt", "by text file")
    write(tmp_path / "in/2.json", orjson.dumps({"caption": "by json"}))
    rows, report = built(tmp_path / "in", tmp_path / "d.jsonl")
    assert [row["caption_or_tags"] for row in rows] == ["by caption file", "by text file"]
    assert report.remarks["not read: empty, and the image has a .caption file"] == 1
    assert report.remarks["not read: the image has a .txt file, which comes before .json"] == 1


@pytest.mark.parametrize(
    ("image", "text"),
    [
        ("e\u0301.png", "\u00e9.txt"),
        ("\u00e9.png", "e\u0301.txt"),
        ("IMG.PNG", "img.txt"),
        ("a.jpg", "A.JPG.TXT"),
        ("b.PNG", "b.TXT"),
    ],
)
def test_captions_pair_across_letter_case_and_unicode_forms(tmp_path: Path, image: str, text: str):
    write(tmp_path / "in" / image, image_bytes())
    write(tmp_path / "in" / text, "a fox")
    rows, _ = built(tmp_path / "in", tmp_path / "d.jsonl")
    assert [row["caption_or_tags"] for row in rows] == ["a fox"]


def test_a_caption_that_has_its_own_image_is_given_to_no_other(tmp_path: Path):
    write(tmp_path / "in/A.png", image_bytes(1))
    write(tmp_path / "in/a.png", image_bytes(2))
    write(tmp_path / "in/a.txt", "the small one")
    rows, report = built(tmp_path / "in", tmp_path / "d.jsonl")
    assert [row["filename"] for row in rows] == ["a.png"]
    assert [bad.where for bad in report.unusable] == ["A.png"]


def test_hidden_images_and_other_files_are_counted(tmp_path: Path):
    images(tmp_path / "in", "1")
    for name in (
        ".hidden.png",
        "._1.png",
        ".ipynb_checkpoints/1.png",
        "@eaDir/1.png",
        "notes.docx",
        "Makefile",
    ):
        write(tmp_path / "in" / name, image_bytes())
    _, report = built(tmp_path / "in", tmp_path / "d.jsonl")
    assert report.num_rows == 1
    assert report.remarks["not read: hidden, or left behind by a system"] == 3
    assert report.remarks["not an image or caption file (.docx)"] == 1
    assert report.remarks["not an image or caption file (no extension)"] == 1


@pytest.mark.parametrize("caption", [None, "by default"])
def test_no_mask_is_trained_however_many_an_image_has(tmp_path: Path, caption: str | None):
    write(tmp_path / "in/a.png", image_bytes(1))
    write(tmp_path / "in/a.txt", "a fox")
    for number in ("", *range(1, 11)):
        write(tmp_path / f"in/a-masklabel{number}.png", image_bytes(2))
    write(tmp_path / "in/a-condlabel2.png", image_bytes(3))
    rows, report = built(tmp_path / "in", tmp_path / "d.jsonl", default_caption=caption)
    assert [row["filename"] for row in rows] == ["a.png"]
    assert report.remarks["not trained: a mask by its name (-masklabel)"] == 12
    assert not report.unusable


@pytest.mark.parametrize("name", ["caption.csv", "set/caption.csv", "set/metadata.csv", "set/rows.jsonl"])
def test_a_table_among_the_images_is_read_under_any_name(tmp_path: Path, name: str):
    table = tmp_path / "in" / name
    write(table.parent / "a.png", image_bytes(1))
    is_lines = name.endswith("jsonl")
    write(table, '{"image": "a.png", "caption": "a fox"}' if is_lines else "caption,image\na fox,a.png")
    rows, report = built(tmp_path / "in", tmp_path / "d.jsonl")
    assert [(row["filename"], row["caption_or_tags"]) for row in rows] == [("a.png", "a fox")]
    assert report.why.startswith(f"{name} describes")


def test_a_table_that_names_none_of_the_images_is_pointed_out(tmp_path: Path):
    write(tmp_path / "in/images/a.png", image_bytes(1))
    table = write(tmp_path / "in/captions.csv", "image,caption\na.png,a fox")
    with pytest.raises(DataError, match=r"captions\.csv: not read: it names no image here.*--root"):
        built(tmp_path / "in", tmp_path / "d.jsonl")
    rows, _ = built(table, tmp_path / "d.jsonl", root=tmp_path / "in/images")
    assert [row["caption_or_tags"] for row in rows] == ["a fox"]


def test_a_zip_is_refused_with_what_to_do(tmp_path: Path):
    with pytest.raises(DataError, match="Unpack it"):
        detect(str(write(tmp_path / "set.zip", b"PK")), BuildOptions())


def test_parquet_with_images_inside_is_counted(tmp_path: Path):
    (tmp_path / "in").mkdir()
    files = [{"bytes": image_bytes(n), "path": f"{n}.png"} for n in (1, 2)]
    columns = {"jpg": files, "txt": ["a fox", "a dog"]}
    pq.write_table(pa.table(columns), tmp_path / "in/train.parquet")
    rows, report = built(tmp_path / "in", tmp_path / "d.jsonl")
    assert [row["caption_or_tags"] for row in rows] == columns["txt"]
    assert report.why == "*.parquet exists, and no image file"
