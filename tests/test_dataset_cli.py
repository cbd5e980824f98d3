"""`flowloom dataset`: what it prints, and that a mistake is one line."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from flowloom.cli import main
from flowloom.dataset_cli import VERBS
from tests.data.prepare.pictures import picture, write


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two good pictures and a broken one, in the working directory."""
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(["a", "sub/b"]):
        write(tmp_path / f"in/{name}.png", picture(number))
        write(tmp_path / f"in/{name}.txt", f"caption {number}")
    write(tmp_path / "in/broken.png", b"no picture")
    write(tmp_path / "in/broken.txt", "x")
    return tmp_path / "in"


def test_build_says_what_became_of_everything(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dataset", "build", "in", "-o", "d.jsonl"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out.splitlines()[0] == "source     in (folder)"
    assert "pictures   2, 2 of them read anew" in captured.out
    assert "rows       2: 0 tags, 2 prose" in captured.out
    assert "unusable   1, all listed in d.jsonl.problems\n  broken.png: not readable" in captured.out
    assert f"images     {folder} (dataloader.image_folder_path)" in captured.out
    assert json.loads(Path("d.jsonl.problems").read_text())["place"] == "broken.png"


def test_a_data_set_goes_out_and_comes_back(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dataset", "build", "in", "-o", "d.jsonl"]) == 0
    outs = {"kohya": "k", "kohya-toml": "k.toml", "webdataset": "w", "parquet": "p.parquet"}
    for form, out in outs.items():
        assert main(["dataset", "export", "d.jsonl", "--to", form, "-o", out]) == 0
        assert main(["dataset", "build", out, "-o", f"{form}.jsonl"]) == 0
        rows = [json.loads(line) for line in Path(f"{form}.jsonl").read_text().splitlines()]
        assert sorted(row["caption_or_tags"] for row in rows) == ["caption 0", "caption 1"]
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["build", "no", "-o", "d.jsonl"], "no: there is nothing of that name."),
        (["build", "empty", "-o", "d.jsonl"], "empty: not one picture with a caption was found as folder."),
        (["export", "no.jsonl", "--to", "kohya", "-o", "x"], "no.jsonl: there is no such file."),
        (["export", "in", "--to", "kohya", "-o", "x"], "in: there is no such file."),
        (["bild"], "there is no verb 'dataset bild', but"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    words: list[str], said: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder.parent / "empty").mkdir()
    assert main(["dataset", *words]) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


@pytest.mark.parametrize(
    "words",
    [
        ["build", "in", "-o", "d.jsonl", "--loss-weight", "2"],
        ["build", "in", "-o", "d.jsonl", "--caption-encoding", "klingon"],
        ["build", "in"],
    ],
)
def test_a_wrong_option_is_named(words: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["dataset", *words])
    assert end.value.code == 2
    assert "argument" in capsys.readouterr().err


def test_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dataset", "--help"]) == 0
    assert re.findall(r"^  ([a-z]+)", capsys.readouterr().out, re.MULTILINE) == list(VERBS)


def test_preparing_needs_no_torch() -> None:
    code = (
        "import pkgutil, importlib, sys, flowloom.data.prepare as p, flowloom.dataset_cli\n"
        "names = [m.name for m in pkgutil.walk_packages(p.__path__, p.__name__ + '.')]\n"
        "[importlib.import_module(name) for name in names]\n"
        "sys.stdout.write(f'{len(names)} {\"torch\" in sys.modules}')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout.split()[0]) > 20
    assert done.stdout.endswith("False")
