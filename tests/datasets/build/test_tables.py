"""One metadata file becomes rows; problems are reported with their line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flowloom.datasets.build.text import looks_tag_based
from flowloom.errors import DataError, ImageError
from flowloom.storage.local import find_image
from tests.datasets.build.images import built, greys, image_bytes, write


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three images."""
    for number, name in enumerate(["a.png", "sub/Bär.png", "c.jpg"]):
        write(tmp_path / "in" / name, image_bytes(number * 50, suffix=Path(name).suffix))
    return tmp_path / "in"


RECORDS = [
    {"file_name": "a.png", "text": "one, with comma"},
    {"file_name": "sub/Bär.png", "text": 'two "quoted"\nand more'},
    {"file_name": "c.jpg", "text": "three"},
]
EXPECTED = {0: ["one, with comma"], 50: ['two "quoted" and more'], 100: ["three"]}
QUOTED = 'a.png{0}"one, with comma"\nsub/Bär.png{0}"two ""quoted""\nand more"\nc.jpg{0}three\n'
STEMS = {Path(record["file_name"]).with_suffix("").as_posix(): record["text"] for record in RECORDS}
TABLES = {
    "list.csv": "file_name,text\n" + QUOTED.format(","),
    "bom.csv": ("\ufefffile_name,text\n" + QUOTED.format(",")).replace("\n", "\r\n"),
    "list.tsv": "file_name\ttext\n" + QUOTED.format("\t"),
    "list.json": orjson.dumps(RECORDS),
    "map.json": orjson.dumps({record["file_name"]: record["text"] for record in RECORDS}),
    "stems.json": orjson.dumps({stem: {"caption": text} for stem, text in STEMS.items()}),
    "list.jsonl": b"\n\n".join(orjson.dumps(record) for record in RECORDS),
    "metadata.jsonl": b"\xef\xbb\xbf" + b"\r\n".join(orjson.dumps(record) for record in RECORDS),
}


@pytest.mark.parametrize("name", TABLES)
def test_every_kind_of_table_gives_the_same_rows(tmp_path: Path, folder: Path, name: str) -> None:
    table = TABLES[name]
    write(folder / name, table)
    rows, report = built(folder / name, tmp_path / "d.jsonl")
    assert report.kind == "table"
    assert (greys(rows, report.root), report.unusable) == (EXPECTED, [])


def test_a_folder_with_its_metadata_is_one(tmp_path: Path, folder: Path) -> None:
    write(folder / "metadata.jsonl", TABLES["list.jsonl"])
    rows, report = built(folder, tmp_path / "d.jsonl")
    assert (report.kind, greys(rows, report.root)) == ("table", EXPECTED)


def test_flows_own_jsonl_is_measured_again_and_keeps_the_rest(tmp_path: Path, folder: Path) -> None:
    row = {"filename": "a.png", "caption_or_tags": "a, b", "width": 1, "height": 2}
    write(folder / "old.jsonl", orjson.dumps(row | {"is_tag_based": True, "loss_weight": 0.5}))
    (back,), _ = built(folder / "old.jsonl", tmp_path / "d.jsonl")
    assert back == row | {
        "width": 40, "height": 30, "is_tag_based": True, "is_url_based": False, "loss_weight": 0.5
    }  # fmt: skip


def test_addresses_keep_their_recorded_sizes(tmp_path: Path) -> None:
    write(tmp_path / "laion.csv", "URL,TEXT,WIDTH,HEIGHT\nhttps://host/a.jpg,a fox,640,480\n")
    (row,), report = built(tmp_path / "laion.csv", tmp_path / "d.jsonl")
    assert (row["filename"], row["is_url_based"], row["width"], row["height"]) == (
        "https://host/a.jpg", True, 640, 480
    )  # fmt: skip
    assert report.num_read == 0


BAD = {
    '{"text": "x"}': "names no file",
    '{"file_name": "a.png"}': "no caption",
    '{"file_name": "gone.png", "text": "x"}': "no such file",
    '{"file_name": "../list.jsonl", "text": "x"}': "leads out",
    '{"file_name": "/etc/hostname", "text": "x"}': "leads out",
    '{"file_name": "a\\u0000.png", "text": "x"}': "not a file name",
    '{"file_name": "sub", "text": "x"}': "no such file",
    '{"file_name": 7, "text": "x"}': "names no file",
    '{"file_name": "a.png", "text": 7}': "must be text",
    '{"file_name": "a.png", "text": "x", "loss_weight": 2}': "loss_weight is 2",
    '{"file_name": "a.png", "text': "not JSON",
    "[1]": "not a JSON object",
    '{"file_name": "twin.png", "text": "x"}': "training reads twin.jxl instead",
    '{"file_name": "both", "text": "x"}': "it may be both.jpg or both.png",
}


@pytest.mark.parametrize("line", BAD)
def test_a_bad_line_is_located(tmp_path: Path, folder: Path, line: str) -> None:
    for name in ("twin.png", "twin.jxl", "both.png", "both.jpg"):
        write(folder / name, b"x")
    write(folder / "list.jsonl", f'{{"file_name": "c.jpg", "text": "good"}}\n{line}\n')
    rows, report = built(folder / "list.jsonl", tmp_path / "d.jsonl")
    assert [row["caption_or_tags"] for row in rows] == ["good"]
    (bad,) = report.unusable
    assert bad.where == "list.jsonl:2"
    assert BAD[line] in bad.reason


@pytest.mark.parametrize(
    ("text", "where", "reason"),
    [
        ("file,caption\nc.jpg,good\na.png\n", "list.csv:3", "it does not have 2 columns"),
        ("file,caption\nc.jpg,good\na.png,x,y\n", "list.csv:3", "it does not have 2 columns"),
        ('file,caption\nc.jpg,good\na.png,"x\n', "list.csv:3", "not valid CSV from here on"),
        ("file,caption\nc.jpg,good\n,x\n", "list.csv:3", "names no file"),
    ],
)
def test_a_bad_line_of_csv_is_located(
    tmp_path: Path, folder: Path, text: str, where: str, reason: str
) -> None:
    write(folder / "list.csv", text)
    rows, report = built(folder / "list.csv", tmp_path / "d.jsonl")
    assert [row["caption_or_tags"] for row in rows] == ["good"]
    (bad,) = report.unusable
    assert bad.where == where
    assert reason in bad.reason


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("a.csv", "file,caption\nä,x".encode("latin-1"), "not utf-8"),
        ("a.json", b"{", "not JSON"),
        ("a.json", b"7", "not a list of rows"),
        ("a.parquet", b"PAR1 not really", "not readable"),
        ("a.docx", b"", "must be one of"),
        ("a.tar", b"not a tar", "cannot be read further"),
    ],
)
def test_an_unreadable_file_is_reported_in_one_sentence(
    tmp_path: Path, name: str, data: bytes, reason: str
) -> None:
    with pytest.raises(DataError, match=reason):
        built(write(tmp_path / name, data), tmp_path / "d.jsonl")


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.binary(max_size=80),
    name=st.sampled_from(["a.csv", "a.json", "a.jsonl", "a.parquet", "a.tar", "a.toml"]),
)
def test_no_bytes_make_a_traceback(tmp_path: Path, data: bytes, name: str) -> None:
    source = write(tmp_path / name, data)
    with pytest.raises(DataError):
        built(source, tmp_path / "d.jsonl")


def test_hugging_face_s_saved_sets_are_read(tmp_path: Path) -> None:
    rows = [{"image": {"bytes": image_bytes(i * 40), "path": None}, "text": f"caption {i}"} for i in range(3)]
    table = pa.Table.from_pylist(rows)
    folder = tmp_path / "saved/train"
    folder.mkdir(parents=True)
    path = str(folder / "data-00000-of-00001.arrow")
    with pa.OSFile(path, "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    write(folder / "state.json", orjson.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))
    write(folder.parent / "dataset_dict.json", orjson.dumps({"splits": ["train", "test"]}))
    for source in (folder, folder.parent):
        found, report = built(source, tmp_path / f"{source.name}.jsonl")
        assert report.kind == "huggingface"
        assert greys(found, report.root) == {i * 40: [f"caption {i}"] for i in range(3)}
    _, report = built(folder, tmp_path / "train.jsonl")
    assert report.num_read == 0
    with pytest.raises(DataError, match=r"no split 'nope'. Splits: train, test"):
        built(folder.parent, tmp_path / "d.jsonl", split="nope")


PARQUETS: dict[str, list[Any]] = {
    "jpg": [image_bytes(0), image_bytes(100)],
    "image": [{"bytes": image_bytes(0), "path": "a.png"}, {"bytes": image_bytes(100), "path": "a.png"}],
    "path": ["a.png", "c.jpg"],
    "img": [{"bytes": None, "path": "a.png"}, {"bytes": None, "path": "c.jpg"}],
}


@pytest.mark.parametrize("column", PARQUETS)
def test_parquet_may_hold_bytes_structs_or_names(tmp_path: Path, folder: Path, column: str) -> None:
    pq.write_table(pa.table({column: PARQUETS[column], "caption": ["x", "y"]}), folder / "t.parquet")
    rows, report = built(folder / "t.parquet", tmp_path / "d.jsonl")
    assert not report.unusable
    assert greys(rows, report.root) == {0: ["x"], 100: ["y"]}
    assert (report.root == folder) == (column in ("path", "img"))


def test_parquet_may_hold_addresses(tmp_path: Path) -> None:
    row = {"url": "https://host/a.png", "caption": "x", "width": 3, "height": 4}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "t.parquet")
    (row,), report = built(tmp_path / "t.parquet", tmp_path / "d.jsonl")
    assert (row["filename"], row["is_url_based"], report.root) == ("https://host/a.png", True, None)


def test_existing_files_are_not_replaced(tmp_path: Path) -> None:
    table = pa.table({"image": [image_bytes(1), image_bytes(2)], "text": ["x", "y"]})
    pq.write_table(table, tmp_path / "t.parquet")
    mine = write(tmp_path / "images/t/00000001.png", "mine")
    rows, report = built(tmp_path / "t.parquet", tmp_path / "d.jsonl", extract_dir=tmp_path / "images")
    assert mine.read_text() == "mine"
    assert [row["caption_or_tags"] for row in rows] == ["y"]
    assert "exists with other content" in report.unusable[0].reason


@pytest.mark.parametrize(
    ("caption", "is_tags"),
    [
        ("1girl, solo, long_hair, looking at viewer", True),
        ("fox, snow, red fur, looking back", True),
        ("watercolor, best quality, black and white", True),
        ("a fox in the snow, watercolour", False),
        ("A woman sits on a bench, reading. Behind her, trees, birds, sky.", False),
        ("a cat, a dog, and a bird", False),
        ("In the foreground, a man with a hat, behind him a very tall house made of stone, night", False),
        ("solo", False),
        ("", False),
    ],
)
def test_tags_are_distinguished_from_prose(caption: str, is_tags: bool) -> None:
    assert looks_tag_based(caption) == is_tags


@pytest.mark.parametrize(
    ("choice", "expected"), [(None, [True, False]), (True, [True] * 2), (False, [False] * 2)]
)
def test_tags_or_prose_can_be_set(
    tmp_path: Path, folder: Path, choice: bool | None, expected: list[bool]
) -> None:
    write(folder / "list.csv", 'file,caption\na.png,"red, blue, green"\nc.jpg,a cat\n')
    rows, _ = built(folder / "list.csv", tmp_path / "d.jsonl", is_tag_based=choice)
    assert [row["is_tag_based"] for row in rows] == expected


CSV = {
    "spaces": 'image, caption\n1.png, a kite\n2.png, "a kite, low"\n',
    "semicolons": "file_name;text\n1.png;a kite\n2.png;a kite, low\n",
    "tabs": "file_name\ttext\n1.png\ta kite\n2.png\ta kite, low\n",
    "bars": "file_name|text\n1.png|a kite\n2.png|a kite, low\n",
}


@pytest.mark.parametrize("form", CSV)
def test_a_csv_of_any_usual_spelling_is_read(tmp_path: Path, form: str) -> None:
    for number in (1, 2):
        write(tmp_path / f"in/{number}.png", image_bytes(number))
    rows, report = built(write(tmp_path / "in/set.csv", CSV[form]), tmp_path / "d.jsonl")
    assert greys(rows, report.root) == {1: ["a kite"], 2: ["a kite, low"]}
    assert not report.unusable


def test_an_unquoted_comma_in_a_caption_is_reported_with_a_hint(tmp_path: Path) -> None:
    write(tmp_path / "in/1.png", image_bytes(1))
    path = write(tmp_path / "in/set.csv", "image,caption\n1.png,a kite\n1.png,a kite, low\n")
    _, report = built(path, tmp_path / "d.jsonl")
    assert [(bad.where, "put the caption in quotes" in bad.reason) for bad in report.unusable] == [
        ("set.csv:3", True)
    ]


@pytest.mark.parametrize("word", ["nan", "NaN", "None", "null", "<NA>", "N/A"])
def test_values_that_mean_no_text_are_no_captions(tmp_path: Path, word: str) -> None:
    for number in (1, 2):
        write(tmp_path / f"in/{number}.png", image_bytes(number))
    path = write(tmp_path / "in/set.csv", f"image,caption\n1.png,a none of that\n2.png,{word}\n")
    rows, report = built(path, tmp_path / "d.jsonl")
    assert greys(rows, report.root) == {1: ["a none of that"]}
    assert [(bad.where, bad.reason) for bad in report.unusable] == [
        ("set.csv:3", f"it has no caption, only {word!r}")
    ]
    rows, report = built(path, tmp_path / "d.jsonl", default_caption="x")
    assert greys(rows, report.root) == {1: ["a none of that"], 2: ["x"]}


def test_nulls_in_a_list_of_captions_are_passed_over(tmp_path: Path) -> None:
    rows = [{"image": f"{n}.png", "captions": c} for n, c in enumerate((["a", None], [None], [], ["b"]))]
    for number in range(4):
        write(tmp_path / f"in/{number}.png", image_bytes(number))
    path = write(tmp_path / "in/set.jsonl", b"\n".join(map(orjson.dumps, rows)))
    read, report = built(path, tmp_path / "d.jsonl")
    assert greys(read, report.root) == {0: ["a"], 3: ["b"]}
    assert [bad.reason for bad in report.unusable] == ["it has no caption"] * 2


def test_paths_of_windows_lead_to_their_files(tmp_path: Path) -> None:
    for number, name in enumerate(("a/1.png", "a/2.png", "back\\slash.png")):
        write(tmp_path / "in" / name, image_bytes(number))
    names = ["a\\1.png", "D:\\sets\\kite\\a\\2.png", "back\\slash.png", "D:\\sets\\..\\..\\gone.png"]
    rows = [{"file_name": name, "text": "x"} for name in names]
    path = write(tmp_path / "in/set.jsonl", b"\r\n".join(map(orjson.dumps, rows)))
    read, report = built(path, tmp_path / "d.jsonl")
    assert [row["filename"] for row in read] == ["a/1.png", "a/2.png", "back\\slash.png"]
    assert [bad.where for bad in report.unusable] == ["set.jsonl:4"]


def test_training_finds_the_files_of_a_jsonl_from_windows(tmp_path: Path) -> None:
    write(tmp_path / "a/1.png", image_bytes())
    write(tmp_path / "b\\2.png", image_bytes())
    assert find_image(tmp_path, "a\\1.png") == tmp_path / "a/1.png"
    assert find_image(tmp_path, "b\\2.png") == tmp_path / "b\\2.png"
    with pytest.raises(ImageError, match="leads out"):
        find_image(tmp_path / "a", "..\\a\\..\\..\\x.png")


def test_excel_s_line_with_the_separator_is_no_header(tmp_path: Path) -> None:
    write(tmp_path / "in/a.png", image_bytes(1))
    lines = 'sep=;\r\nfile_name;caption\r\na.png;"red; fox, big"\r\ngone.png;x\r\n'
    rows, report = built(write(tmp_path / "in/set.csv", lines), tmp_path / "d.jsonl")
    assert [row["caption_or_tags"] for row in rows] == ["red; fox, big"]
    assert [bad.where for bad in report.unusable] == ["set.csv:4"]


@pytest.mark.parametrize(
    ("header", "flag"), [("image,comment", "--caption-column"), ("photo_file,caption", "--filename-column")]
)
def test_unknown_columns_are_listed_with_the_flag_that_names_them(
    tmp_path: Path, header: str, flag: str
) -> None:
    write(tmp_path / "in/a.png", image_bytes(1))
    table = write(tmp_path / "in/set.csv", f"{header}\na.png,a fox")
    with pytest.raises(DataError, match=flag) as caught:
        built(table, tmp_path / "d.jsonl")
    assert header.replace(",", ", ") in str(caught.value)
    option = flag.removeprefix("--").replace("-", "_")
    column = header.split(",")[option == "caption_column"]
    assert len(built(table, tmp_path / "d.jsonl", **{option: column})[0]) == 1
