"""User text files are read in every encoding that their bytes show; all readers share one decoder."""

from __future__ import annotations

import codecs
from pathlib import Path

import orjson
import pytest

from flowloom.config.flow_format.read import read_config
from flowloom.config.secrets import read_secrets
from flowloom.data.metadata import read_metadata
from flowloom.errors import ConfigError, DataError
from flowloom.text_files import as_utf8, decode, read_text
from flowloom.trainers.kohya.imports import from_bmaltais, from_toml
from tests.datasets.build.images import built, image_bytes, write

MARKED = {
    "utf-8": codecs.BOM_UTF8,
    "utf-16-le": codecs.BOM_UTF16_LE,
    "utf-16-be": codecs.BOM_UTF16_BE,
    "utf-32-le": codecs.BOM_UTF32_LE,
    "utf-32-be": codecs.BOM_UTF32_BE,
}


def saved(text: str, encoding: str) -> bytes:
    """`text` as an editor saves it, with a byte order mark."""
    return MARKED[encoding] + text.encode(encoding)


@pytest.mark.parametrize("encoding", MARKED)
def test_a_byte_order_mark_decides_and_is_no_part_of_the_text(encoding: str):
    assert decode(saved("Bär 狐 🦊", encoding)) == "Bär 狐 🦊"
    assert as_utf8(saved("Bär", encoding)) == "Bär".encode()


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_without_a_mark_is_recognized(encoding: str):
    assert decode("red fox, snow".encode(encoding)) == "red fox, snow"


@pytest.mark.parametrize(
    ("data", "reason"), [("café".encode("cp1252"), "not utf-8"), (b"red\0fox, snow", "zero bytes")]
)
def test_other_bytes_are_refused_and_not_guessed(data: bytes, reason: str):
    with pytest.raises(DataError, match=reason):
        decode(data)


def test_cp1252_is_read_when_it_is_stated(tmp_path: Path):
    path = write(tmp_path / "a.txt", "fox\u2019s den".encode("cp1252"))
    assert read_text(path, "cp1252") == "fox\u2019s den"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le"])
def test_a_configuration_with_a_mark_is_read(tmp_path: Path, encoding: str):
    path = write(tmp_path / "training_config.json", saved('{"training": {"lr": 0.5}}', encoding))
    assert read_config(path).config.training.lr == 0.5


def test_a_configuration_in_another_encoding_is_refused_in_one_sentence(tmp_path: Path):
    with pytest.raises(ConfigError, match="cannot be read \\(not utf-8"):
        read_config(write(tmp_path / "a.json", '{"name": "é"}'.encode("cp1252")))


def test_a_configuration_that_is_nested_too_deeply_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="nested too deeply"):
        read_config(write(tmp_path / "a.json", "[" * 100_000))


def test_secrets_with_a_mark_are_read(tmp_path: Path):
    path = write(tmp_path / "secrets.json", saved('{"HF_TOKEN": "hf_x"}', "utf-16-le"))
    path.chmod(0o600)
    assert read_secrets({"FLOWLOOM_SECRETS": str(path)}) == {"HF_TOKEN": "hf_x"}


def test_kohya_configurations_with_a_mark_are_imported():
    text = "\ufeffmax_train_steps = 5\n"
    assert from_toml(text).config["training"]["max_train_steps"] == 5
    assert from_bmaltais('\ufeff{"max_train_steps": 5}').config["training"]["max_train_steps"] == 5


TABLES = {
    "metadata.jsonl": '{"file_name": "a.png", "text": "Bär"}\n{"file_name": "b.png", "text": "狐"}\n',
    "metadata.csv": "file_name,text\na.png,Bär\nb.png,狐\n",
    "set.json": '{"a.png": "Bär", "b": {"caption": "狐"}}',
}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("name", TABLES)
def test_tables_with_a_mark_give_the_same_rows(tmp_path: Path, name: str, encoding: str):
    for number, stem in enumerate("ab"):
        write(tmp_path / f"in/{stem}.png", image_bytes(number))
    rows, report = built(write(tmp_path / "in" / name, saved(TABLES[name], encoding)), tmp_path / "d.jsonl")
    assert [(row["filename"], row["caption_or_tags"]) for row in rows] == [("a.png", "Bär"), ("b.png", "狐")]
    assert not report.unusable


def test_a_dataset_toml_with_a_mark_is_read(tmp_path: Path):
    write(tmp_path / "pics/a.png", image_bytes())
    write(tmp_path / "pics/a.txt", "fox")
    text = '[[datasets]]\n[[datasets.subsets]]\nimage_dir = "pics"\ncaption_extension = ".txt"\n'
    rows, _ = built(write(tmp_path / "set.toml", saved(text, "utf-16-le")), tmp_path / "d.jsonl")
    assert [row["caption_or_tags"] for row in rows] == ["fox"]


def test_training_says_that_a_jsonl_is_utf_16(tmp_path: Path):
    row = orjson.dumps({"filename": "a.png", "caption_or_tags": "x", "width": 9, "height": 9}).decode()
    path = write(tmp_path / "d.jsonl", saved(f"{row}\n", "utf-16-le"))
    with pytest.raises(DataError, match=r"UTF-16\. Run 'flowloom dataset build"):
        read_metadata(path)
