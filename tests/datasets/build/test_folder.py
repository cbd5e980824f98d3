"""A folder of images becomes rows, each with its caption, and every problem is located."""

from __future__ import annotations

import os
import time
from pathlib import Path

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from flowloom.data.images.decode import load_image
from flowloom.data.metadata import read_metadata
from flowloom.datasets.build.build import CHUNK, BuildReport, build
from flowloom.datasets.build.options import BuildOptions
from flowloom.errors import DataError
from flowloom.storage.local import find_image
from tests.datasets.build.images import built, greys, image_bytes, write


def reasons(report: BuildReport) -> dict[str, str]:
    return {Path(bad.where).name: bad.reason for bad in report.unusable}


def test_rows_have_all_of_flows_fields(tmp_path: Path) -> None:
    write(tmp_path / "in/sub/a.jpg", image_bytes(7, (48, 32), ".jpg"))
    write(tmp_path / "in/sub/a.txt", "  a cat\r\non a mat \n")
    rows, report = built(tmp_path / "in", tmp_path / "d.jsonl")
    assert rows == [
        {
            "filename": "sub/a.jpg",
            "caption_or_tags": "a cat on a mat",
            "width": 48,
            "height": 32,
            "is_tag_based": False,
            "is_url_based": False,
            "loss_weight": 1.0,
        }
    ]
    assert (report.kind, report.root, report.num_rows, report.unusable) == ("folder", tmp_path / "in", 1, [])
    assert read_metadata(tmp_path / "d.jsonl").row(0).filename == "sub/a.jpg"


def test_captions_come_from_txt_caption_and_json(tmp_path: Path) -> None:
    for i in range(5):
        write(tmp_path / f"in/{i}.png", image_bytes(i))
    write(tmp_path / "in/0.txt", "from text")
    write(tmp_path / "in/0.caption", "not this one")
    write(tmp_path / "in/1.caption", "from caption")
    write(tmp_path / "in/2.json", orjson.dumps({"caption": "from json", "loss_weight": 0.5}))
    write(tmp_path / "in/3.json", orjson.dumps({"tags": ["one", "two"]}))
    write(tmp_path / "in/4.TXT", "upper case")
    rows, report = built(tmp_path / "in", tmp_path / "d.jsonl")
    remarks = [(row["caption_or_tags"], row["is_tag_based"], row["loss_weight"]) for row in rows]
    assert remarks == [
        ("from text", False, 1.0),
        ("from caption", False, 1.0),
        ("from json", False, 0.5),
        ("one, two", True, 1.0),
        ("upper case", False, 1.0),
    ]
    assert not report.unusable


BROKEN = {
    "latin1.txt": ("ein Bär".encode("latin-1"), "--caption-encoding"),
    "cut.txt": ("Bär".encode()[:2], "not utf-8"),
    "zero.txt": (b"a\0b", "zero bytes"),
    "broken.json": (b'{"caption": ', "not JSON"),
    "odd.json": (b'{"caption": 7}', "must be text"),
    "none.json": (b'{"author": "me"}', "none of its fields"),
    "list.json": (b'{"caption": ["a", 2]}', "list of texts"),
    "heavy.json": (b'{"caption": "a", "loss_weight": 3}', "loss_weight is 3"),
    "lone.json": (b'{"caption": "\\ud800"}', "not JSON"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_caption_file_is_located_and_the_others_are_used(tmp_path: Path, name: str) -> None:
    data, reason = BROKEN[name]
    write(tmp_path / "in" / name, data)
    write(tmp_path / "in" / f"{Path(name).stem}.png", image_bytes(1))
    write(tmp_path / "in/good.png", image_bytes(2))
    write(tmp_path / "in/good.txt", "good")
    rows, report = built(tmp_path / "in", tmp_path / "d.jsonl")
    assert [row["caption_or_tags"] for row in rows] == ["good"]
    (bad,) = report.unusable
    assert bad.where == f"{Path(name).stem}.png"
    assert reason in bad.reason
    assert name in bad.reason
    assert report.problems_path is not None
    assert orjson.loads(report.problems_path.read_bytes()) == {"where": bad.where, "reason": bad.reason}


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_byte_order_marks_are_understood(tmp_path: Path, encoding: str) -> None:
    write(tmp_path / "in/a.png", image_bytes())
    write(tmp_path / "in/a.txt", "Bär 🐻".encode(encoding))
    rows, _ = built(tmp_path / "in", tmp_path / "d.jsonl")
    assert rows[0]["caption_or_tags"] == "Bär 🐻"


def test_another_encoding_can_be_named(tmp_path: Path) -> None:
    write(tmp_path / "in/a.png", image_bytes())
    write(tmp_path / "in/a.txt", "Bär".encode("cp1252"))
    rows, _ = built(tmp_path / "in", tmp_path / "d.jsonl", caption_encoding="cp1252")
    assert rows[0]["caption_or_tags"] == "Bär"


def test_images_of_one_stem_never_share_a_caption_unasked(tmp_path: Path) -> None:
    write(tmp_path / "in/a.jpg", image_bytes(1, suffix=".jpg"))
    write(tmp_path / "in/a.png", image_bytes(2))
    write(tmp_path / "in/a.txt", "whose?")
    write(tmp_path / "in/b.jpg", image_bytes(3, suffix=".jpg"))
    write(tmp_path / "in/b.png", image_bytes(4))
    write(tmp_path / "in/b.jpg.txt", "the jpg")
    write(tmp_path / "in/b.png.txt", "the png")
    rows, report = built(tmp_path / "in", tmp_path / "d.jsonl")
    assert greys(rows, report.root) == {3: ["the jpg"], 4: ["the png"]}
    assert set(reasons(report)) == {"a.jpg", "a.png"}
    assert "a.txt may be its caption or that of a.png: rename it a.jpg.txt" in reasons(report)["a.jpg"]


def test_beside_a_jxl_twin_only_what_training_reads_becomes_a_row(tmp_path: Path) -> None:
    write(tmp_path / "in/a.jxl", b"not really a JPEG XL")
    write(tmp_path / "in/a.png", image_bytes(2))
    write(tmp_path / "in/a.txt", "caption")
    write(tmp_path / "in/b.png", image_bytes(3))
    write(tmp_path / "in/b.txt", "b")
    rows, report = built(tmp_path / "in", tmp_path / "d.jsonl")
    assert [row["filename"] for row in rows] == ["b.png"]
    assert set(reasons(report)) == {"a.jxl"}
    assert any("twin" in remark for remark in report.remarks)


def test_hidden_files_and_what_systems_leave_are_passed_over(tmp_path: Path) -> None:
    for name in [".hidden.png", ".git/a.png", "__MACOSX/a.png", "@eaDir/a.png", "good.png"]:
        write(tmp_path / "in" / name, image_bytes())
    rows, report = built(tmp_path / "in", tmp_path / "d.jsonl", default_caption="x")
    assert [row["filename"] for row in rows] == ["good.png"]
    assert not report.unusable


def test_circular_links_and_links_out_of_the_folder_are_reported(tmp_path: Path) -> None:
    write(tmp_path / "in/a/1.png", image_bytes(1))
    write(tmp_path / "elsewhere/2.png", image_bytes(2))
    (tmp_path / "in/a/loop").symlink_to(tmp_path / "in")
    (tmp_path / "in/a/out").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in/a/out.png").symlink_to(tmp_path / "elsewhere/2.png")
    (tmp_path / "in/a/self.png").symlink_to("self.png")
    (tmp_path / "in/a/nothing.png").symlink_to("nothing-there.png")
    (tmp_path / "in/inner.png").symlink_to("a/1.png")
    rows, report = built(tmp_path / "in", tmp_path / "d.jsonl", default_caption="x")
    assert [row["filename"] for row in rows] == ["inner.png", "a/1.png"]
    assert set(reasons(report)) == {"out", "out.png", "self.png", "nothing.png"}
    rows, report = built(tmp_path / "in", tmp_path / "d.jsonl", default_caption="x", root=tmp_path)
    assert [row["filename"] for row in rows] == ["in/inner.png", "in/a/1.png", "in/a/out.png"]
    for row in rows:
        assert find_image(tmp_path, row["filename"])


def test_files_that_are_not_images_are_reported(tmp_path: Path) -> None:
    good = image_bytes(size=(300, 200), suffix=".jpg")
    write(tmp_path / "in/empty.png", b"")
    write(tmp_path / "in/text.jpg", b"<html>not found</html>")
    write(tmp_path / "in/cut.jpg", good[:20])
    (tmp_path / "in/folder.png").mkdir()
    os.mkfifo(tmp_path / "in/pipe.png")
    write(tmp_path / "in/wrong-suffix.png", good)
    rows, report = built(tmp_path / "in", tmp_path / "d.jsonl", default_caption="x")
    assert [(row["filename"], row["width"]) for row in rows] == [("wrong-suffix.png", 300)]
    assert set(reasons(report)) == {"empty.png", "text.jpg", "cut.jpg", "pipe.png"}


def test_sizes_are_those_of_the_upright_image(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "in").mkdir()
    for name in ("a.jpg", "a-b.png", "c.webp"):
        Image.new("RGB", (50, 20)).save(tmp_path / "in" / name, exif=exif)
    rows, _ = built(tmp_path / "in", tmp_path / "d.jsonl", default_caption="x")
    assert [(row["width"], row["height"]) for row in rows] == [(20, 50)] * 3


def test_a_name_that_is_not_utf8_is_reported(tmp_path: Path) -> None:
    write(tmp_path / "in/good.png", image_bytes())
    write(tmp_path / "in" / os.fsdecode(b"b\xe4r.png"), image_bytes())
    rows, report = built(tmp_path / "in", tmp_path / "d.jsonl", default_caption="x")
    assert len(rows) == 1
    assert report.unusable[0].where == r"b\xe4r.png"
    assert "not UTF-8" in report.unusable[0].reason


names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1, max_size=20)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(names.filter(lambda name: not name.startswith(".")), names, min_size=1, max_size=5))
def test_any_name_and_caption_stay_together(tmp_path: Path, captions: dict[str, str]) -> None:
    folder = tmp_path / f"in-{time.perf_counter_ns()}"
    captions = {name: text for name, text in captions.items() if len(name.encode()) < 200}
    for number, (name, text) in enumerate(captions.items()):
        write(folder / f"{name}.png", image_bytes(number))
        write(folder / f"{name}.txt", text)
    rows, report = built(folder, folder.with_suffix(".jsonl"))
    expected = {number: [" ".join(text.split())] for number, text in enumerate(captions.values())}
    spaced = {
        grey: [" ".join(text.split()) for text in texts] for grey, texts in greys(rows, report.root).items()
    }
    assert spaced == expected
    metadata = read_metadata(folder.with_suffix(".jsonl"))
    for index in range(len(metadata)):
        path = find_image(folder, metadata.row(index).filename)
        assert load_image(path, (16, 16), (0, 0, 0), 1.0).shape == (16, 16, 3)


def test_a_rerun_reads_only_what_changed(tmp_path: Path) -> None:
    for i in range(4):
        write(tmp_path / f"in/{i}.png", image_bytes(i))
        write(tmp_path / f"in/{i}.txt", f"caption {i}")
    first, report = built(tmp_path / "in", tmp_path / "d.jsonl")
    assert report.num_read == 4
    again, report = built(tmp_path / "in", tmp_path / "d.jsonl")
    assert (again, report.num_read) == (first, 0)
    write(tmp_path / "in/1.png", image_bytes(1, (60, 60)))
    write(tmp_path / "in/2.txt", "another one")
    (tmp_path / "in/3.png").unlink()
    rows, report = built(tmp_path / "in", tmp_path / "d.jsonl")
    assert report.num_read == 1
    assert [(row["width"], row["caption_or_tags"]) for row in rows] == [
        (40, "caption 0"),
        (60, "caption 1"),
        (40, "another one"),
    ]
    assert report.remarks["a caption file without an image"] == 1


def test_a_damaged_state_costs_time_only(tmp_path: Path) -> None:
    write(tmp_path / "in/a.png", image_bytes())
    first, _ = built(tmp_path / "in", tmp_path / "d.jsonl", default_caption="x")
    write(tmp_path / "d.jsonl.state", b"not a data base, surely not one" * 50)
    again, report = built(tmp_path / "in", tmp_path / "d.jsonl", default_caption="x")
    assert (again, report.num_read) == (first, 1)


def test_a_source_without_images_keeps_the_old_file(tmp_path: Path) -> None:
    write(tmp_path / "in/a.png", b"broken")
    write(tmp_path / "d.jsonl", "old")
    with pytest.raises(DataError, match=r"no image .* reading it as folder.*a.png: not readable"):
        built(tmp_path / "in", tmp_path / "d.jsonl", default_caption="x")
    assert (tmp_path / "d.jsonl").read_text() == "old"
    with pytest.raises(DataError, match="no such file or folder"):
        built(tmp_path / "no", tmp_path / "d.jsonl")


def test_names_become_addresses_by_choice(tmp_path: Path) -> None:
    write(tmp_path / "in/a b/ü.png", image_bytes())
    options = {"default_caption": "x", "url_prefix": "https://host/set/"}
    rows, _ = built(tmp_path / "in", tmp_path / "d.jsonl", **options)
    assert (rows[0]["filename"], rows[0]["is_url_based"]) == ("https://host/set/a%20b/%C3%BC.png", True)
    rows, _ = built(tmp_path / "in", tmp_path / "d.jsonl", **options | {"url_prefix": "s3://bucket/set"})
    assert rows[0]["filename"] == "s3://bucket/set/a b/ü.png"


def test_a_deep_tree_is_read_to_its_end(tmp_path: Path) -> None:
    deep = tmp_path / "in" / "/".join("d" * 300)
    folder = tmp_path / "in"
    folder.mkdir()
    here = Path.cwd()
    try:
        os.chdir(folder)
        for _ in range(300):
            os.mkdir("d")  # noqa: PTH102
            os.chdir("d")
        Path("a.png").write_bytes(image_bytes())
    finally:
        os.chdir(here)
    rows, _ = built(tmp_path / "in", tmp_path / "d.jsonl", default_caption="x")
    assert rows[0]["filename"] == f"{deep.relative_to(folder).as_posix()}/a.png"


def test_an_unwritable_output_is_reported(tmp_path: Path) -> None:
    write(tmp_path / "in/a.png", image_bytes())
    write(tmp_path / "file", "")
    (tmp_path / "folder.jsonl").mkdir()
    for output in (tmp_path / "file/d.jsonl", tmp_path / "folder.jsonl"):
        with pytest.raises(DataError, match="cannot be written"):
            built(tmp_path / "in", output, default_caption="x")


def test_an_interrupted_build_continues_and_keeps_the_old_file(tmp_path: Path) -> None:
    for i in range(CHUNK + 10):
        write(tmp_path / f"in/{i}.png", image_bytes())
    write(tmp_path / "d.jsonl", "old")

    def interrupt(report: BuildReport) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(str(tmp_path / "in"), tmp_path / "d.jsonl", BuildOptions(default_caption="x"), interrupt)
    assert (tmp_path / "d.jsonl").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d.jsonl", "d.jsonl.state", "in"]
    rows, report = built(tmp_path / "in", tmp_path / "d.jsonl", default_caption="x")
    assert (len(rows), report.num_read) == (CHUNK + 10, 10)
