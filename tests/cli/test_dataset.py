"""`flowloom dataset`: what it prints, and that a mistake is one line."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from flowloom.cli.dataset import VERBS
from flowloom.cli.main import main
from flowloom.storage.base import StorageSection
from flowloom.storage.open import open_source
from tests.datasets.build.images import image_bytes, write
from tests.fakes.seaweed import Seaweed


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two good images and a broken one, in the working directory."""
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(["a", "sub/b"]):
        write(tmp_path / f"in/{name}.png", image_bytes(number))
        write(tmp_path / f"in/{name}.txt", f"caption {number}")
    write(tmp_path / "in/broken.png", b"no image")
    write(tmp_path / "in/broken.txt", "x")
    return tmp_path / "in"


def test_build_reports_every_row_and_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dataset", "build", "in", "-o", "d.jsonl"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out.splitlines()[0] == "source     in (folder)"
    assert "images     2, 2 of them read;" in captured.out
    assert "rows       2: 0 tags, 2 prose" in captured.out
    assert "unusable   1, all listed in d.jsonl.problems\n  broken.png: not readable" in captured.out
    assert f"images     {folder} (dataloader.image_folder_path)" in captured.out
    assert json.loads(Path("d.jsonl.problems").read_text())["where"] == "broken.png"


def test_a_dataset_is_exported_and_built_again(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dataset", "build", "in", "-o", "d.jsonl"]) == 0
    outs = {"kohya": "k", "kohya-toml": "k.toml", "webdataset": "w", "parquet": "p.parquet"}
    for form, out in outs.items():
        assert main(["dataset", "export", "d.jsonl", "--to", form, "-o", out]) == 0
        assert main(["dataset", "build", out, "-o", f"{form}.jsonl"]) == 0
        rows = [json.loads(line) for line in Path(f"{form}.jsonl").read_text().splitlines()]
        assert sorted(row["caption_or_tags"] for row in rows) == ["caption 0", "caption 1"]
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["build", "no", "-o", "d.jsonl"], "no: no such file or folder."),
        (
            ["build", "empty", "-o", "d.jsonl"],
            "empty: no image with a caption was found by reading it as folder.",
        ),
        (["export", "no.jsonl", "--to", "kohya", "-o", "x"], "no.jsonl: no such file."),
        (["export", "in", "--to", "kohya", "-o", "x"], "in: no such file."),
        (["bild"], "there is no verb 'dataset bild'. Verbs: build,"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    arguments: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder.parent / "empty").mkdir()
    assert main(["dataset", *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ["build", "in", "-o", "d.jsonl", "--loss-weight", "2"],
        ["build", "in", "-o", "d.jsonl", "--caption-encoding", "klingon"],
        ["build", "in"],
    ],
)
def test_a_wrong_option_is_named(
    arguments: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["dataset", *arguments])
    assert end.value.code == 2
    assert "argument" in capsys.readouterr().err


def test_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dataset", "--help"]) == 0
    assert re.findall(r"^  ([a-z]+)", capsys.readouterr().out, re.MULTILINE) == list(VERBS)


def test_preparing_needs_no_torch() -> None:
    code = (
        "import pkgutil, importlib, sys, flowloom.datasets.build as p, flowloom.cli.dataset\n"
        "names = [m.name for m in pkgutil.walk_packages(p.__path__, p.__name__ + '.')]\n"
        "[importlib.import_module(name) for name in names]\n"
        "sys.stdout.write(f'{len(names)} {\"torch\" in sys.modules}')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout.split()[0]) > 20
    assert done.stdout.endswith("False")


@pytest.mark.slow
def test_stores_are_named_by_the_keys_of_the_configuration(
    folder: Path,
    seaweed: Seaweed,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Every verb that talks to a store takes them; nothing else says where the store is."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    keys = f"[loom]\naws_access_key_id = {seaweed.key}\naws_secret_access_key = {seaweed.secret}\n"
    Path("credentials").write_text(keys)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "credentials")
    monkeypatch.setenv("AWS_CONFIG_FILE", "none")
    where = ["--endpoint", seaweed.endpoint, "--profile", "loom"]
    bucket = f"s3://loom/{folder.parent.name}"
    assert main(["dataset", "build", "in", "-o", "d.jsonl"]) == 0
    assert main(["dataset", "upload", "d.jsonl", bucket, "-o", "up.jsonl", *where]) == 0
    assert main(["dataset", "export", "up.jsonl", "--to", "webdataset", "-o", "w", *where]) == 0
    assert (
        main(["dataset", "lint", "up.jsonl", "--urls", "--resolution", "64", "--html", "l.html", *where]) == 0
    )
    assert main(["dataset", "fix", "up.jsonl", "--urls", "--resolution", "64", "-o", "f.jsonl", *where]) == 0
    # A JSONL in the bucket, whose names are relative to its folder.
    section = StorageSection(endpoint=seaweed.endpoint, profile="loom")
    open_source(bucket, section).write("set.jsonl", Path("d.jsonl"))
    assert main(["dataset", "lint", f"{bucket}/set.jsonl", "--resolution", "64", *where]) == 0
    open_source(bucket, section).write("bad.jsonl", Path("d.jsonl").read_bytes().replace(b".png", b".gone"))
    assert main(["dataset", "lint", f"{bucket}/bad.jsonl", "--resolution", "64", *where]) == 2
    caption = ["--caption", "x"]
    assert main(["dataset", "build", bucket, "-o", "listed.jsonl", *caption, *where]) == 0
    assert len(Path("listed.jsonl").read_text().splitlines()) == 2
    capsys.readouterr()
    assert main(["dataset", "build", bucket, "-o", "l.jsonl", *caption, *where[:2], "--anonymous"]) == 2
    assert "access denied" in capsys.readouterr().err
    assert main(["dataset", "build", bucket, "-o", "l.jsonl", "--endpoint", "nowhere"]) == 2
    assert "--endpoint: write it as https://HOST." in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["build", "export", "upload", "lint", "fix"])
def test_options_of_stores_have_the_help_of_the_configuration(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["dataset", verb, "--help"])
    output = "".join(capsys.readouterr().out.split())
    for key in ("endpoint", "region", "addressing", "profile", "anonymous"):
        assert f"--{key}" in output
        assert "".join(str(StorageSection.model_fields[key].description).split()) in output
