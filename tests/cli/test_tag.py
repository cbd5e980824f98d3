"""Tagging and captioning from the terminal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flowloom.cli.tag import caption, tag
from flowloom.datasets.build.build import build
from flowloom.datasets.build.options import BuildOptions
from flowloom.errors import ConfigError
from flowloom.storage.base import StorageSection
from flowloom.storage.open import open_source
from tests.tasks.tagging.conftest import image_dir, runs, tagger  # noqa: F401 -- fixtures

FOX = "fox (forest story), red theme, ^_^, long hair, 1girl"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_folder_is_previewed_tagged_and_restored(
    image_dir: Path,  # noqa: F811
    tagger: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
):
    argv = [image_dir.name, "--model", tagger.name, "--blacklist", "1girl, ^_^", "--no-replace-underscores"]
    assert tag([*argv, "--preview", "3", "--name", "look"]) == 0
    out = capsys.readouterr().out
    assert "red.png: fox_(forest_story), red_theme, long_hair\n" in out
    assert not list(image_dir.glob("*.txt"))
    assert tag([*argv, "--name", "all", "--replacements", "long_hair=hair"]) == 0
    assert "written    3" in capsys.readouterr().out
    assert (image_dir / "red.txt").read_text() == "fox_(forest_story), red_theme, hair\n"
    assert tag(["--undo", "runs/all"]) == 0
    assert not list(image_dir.glob("*.txt"))
    assert tag(["--resume", "runs/all"]) == 0
    assert len(list(image_dir.glob("*.txt"))) == 3


def test_names_in_a_jsonl_are_below_the_folder_that_its_build_recorded(
    image_dir: Path,  # noqa: F811
    tagger: Path,  # noqa: F811
    tmp_path: Path,
):
    jsonl = tmp_path / "elsewhere" / "set.jsonl"
    jsonl.parent.mkdir()
    (image_dir / "red.txt").write_text("a fox")
    build(str(image_dir), jsonl, BuildOptions(default_caption=""), lambda _: None)
    assert tag([str(jsonl), "--model", str(tagger)]) == 0
    rows = {row["filename"]: row for row in map(json.loads, jsonl.read_text().splitlines())}
    assert rows["red.png"]["caption_or_tags"] == "a fox"
    assert rows["blue.png"]["caption_or_tags"] == "blue theme, ^_^, long hair, 1girl"


@pytest.mark.slow
def test_images_of_a_bucket_are_tagged_beside_them_or_in_a_jsonl_and_restored(
    image_dir: Path,  # noqa: F811
    tagger: Path,  # noqa: F811
    tmp_path: Path,
    storage: StorageSection,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    assert storage.endpoint
    monkeypatch.setenv("AWS_ENDPOINT_URL", storage.endpoint)
    url = f"s3://loom/{tmp_path.name}"
    store = open_source(url, storage)
    for path in image_dir.glob("*.png"):
        store.write(path.name, path)
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    store.write("red.txt", b"mine")
    there = [url, "--model", str(tagger), "--endpoint", storage.endpoint]
    assert tag([*there, "--name", "beside"]) == 0
    texts = {info.name: store.read(info.name) for info in store.list() if info.name.endswith(".txt")}
    assert texts.keys() == {"red.txt", "green.txt", "blue.txt"}
    assert (texts["red.txt"], texts["blue.txt"]) == (b"mine", b"blue theme, ^_^, long hair, 1girl\n")
    assert "kept       1" in capsys.readouterr().out
    store.write("green.txt", b"theirs")
    assert tag(["--undo", "runs/beside"]) == 0
    texts = {info.name: store.read(info.name) for info in store.list() if info.name.endswith(".txt")}
    assert texts == {"red.txt": b"mine", "green.txt": b"theirs"}
    for name in texts:
        store.delete(name)
    monkeypatch.setenv("AWS_ENDPOINT_URL", storage.endpoint)
    build(url, Path("set.jsonl"), BuildOptions(default_caption="", storage=storage), lambda _: None)
    before = Path("set.jsonl").read_bytes()
    assert tag(["set.jsonl", "--model", str(tagger), "--name", "all"]) == 0
    rows = {row["filename"]: row for row in map(json.loads, Path("set.jsonl").read_text().splitlines())}
    assert rows[f"{url}/blue.png"]["caption_or_tags"] == "blue theme, ^_^, long hair, 1girl"
    assert tag(["--undo", "runs/all"]) == 0
    assert Path("set.jsonl").read_bytes() == before


def test_problems_are_reported_before_anything_is_created(
    image_dir: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    with pytest.raises(ConfigError, match="nowhere does not exist"):
        tag(["nowhere"])
    with pytest.raises(ConfigError, match=r"has no config\.json"):
        caption([image_dir.name, "--model", image_dir.name])
    with pytest.raises(SystemExit):
        tag([])
    assert "give a folder" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_run_that_fails_says_why(
    image_dir: Path,  # noqa: F811
    tagger: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
):
    (tagger / "model.onnx").write_bytes(b"nothing")
    assert tag([str(image_dir), "--model", str(tagger), "--name", "bad"]) == 2
    assert "onnxruntime cannot open it" in capsys.readouterr().err


@pytest.mark.parametrize("verb", [tag, caption])
def test_help_names_every_field(verb, capsys: pytest.CaptureFixture[str]):
    from flowloom.tasks import ALL

    with pytest.raises(SystemExit):
        verb(["--help"])
    text = capsys.readouterr().out
    fields = ALL[verb.__name__].config_type.model_fields.keys() - {
        "repo",
        "model_path",
        "data_path",
        "storage",
    }
    assert not [name for name in fields if f"--{name.replace('_', '-')}" not in text]
