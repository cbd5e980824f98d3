"""For any command line with a mistake, the answer is one plain line and status 2, and no traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from flowloom.cli.main import main

FLOWLOOM = [sys.executable, "-m", "flowloom.cli.main"]
BROKEN: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: None,
    "a folder": lambda path: path.mkdir(),
    "empty": lambda path: path.write_bytes(b""),
    "binary": lambda path: path.write_bytes(bytes(range(256)) * 20),
    "not UTF-8": lambda path: path.write_bytes('{"a": "ü"}'.encode("latin-1")),
    "YAML": lambda path: path.write_text("training:\n  lr: 1e-4\n"),
    "a list": lambda path: path.write_text("[1]"),
    "deep": lambda path: path.write_text("[" * 20_000 + "]" * 20_000),
    "a circle of links": lambda path: path.symlink_to(path),
    "below a file": lambda path: path.parent.touch(),
}
ON_A_FILE = {
    "train": ["train", "FILE"],
    "train --dry-run": ["train", "FILE", "--dry-run"],
    "preflight": ["preflight", "FILE"],
    "cache fill": ["cache", "fill", "FILE"],
    "cache stats": ["cache", "stats", "FILE"],
    "dataset lint": ["dataset", "lint", "FILE"],
    "dataset fix": ["dataset", "fix", "FILE", "-o", "new.jsonl"],
    "dataset update": ["dataset", "update", "FILE"],
    "dataset export": ["dataset", "export", "FILE", "--to", "kohya", "-o", "out"],
    "dataset upload": ["dataset", "upload", "FILE", "s3://bucket/x", "--endpoint", "http://127.0.0.1:9"],
    "sample": ["sample", "FILE", "--prompt", "x"],
    "export": ["export", "FILE", "--format", "comfy", "-o", "x.safetensors"],
    "schema --check": ["schema", "--check", "FILE"],
    "resume": ["resume", "FILE"],
}


def status_of(arguments: list[str]) -> int:
    """The exit status, also where the parser of the words ends it."""
    try:
        return main(arguments)
    except SystemExit as end:
        return int(str(end.code))


@pytest.mark.parametrize("verb", ON_A_FILE)
@pytest.mark.parametrize("kind", BROKEN)
def test_every_verb_names_the_problem_of_a_file_in_plain_text(
    kind: str, verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / ("inner/a.json" if kind == "below a file" else "a.json")
    BROKEN[kind](path)
    arguments = [str(path) if word == "FILE" else word for word in ON_A_FILE[verb]]
    assert status_of(arguments) == 2
    message = capsys.readouterr().err
    assert "flowloom" in message
    assert "Traceback" not in message
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["up", "--port", "99999"],
        ["up", "--port", "-1"],
        ["up", "--port", "x"],
        ["up", "--host", ""],
        ["up", "--home", ""],
        ["doctor", "--port", "65536"],
        ["dataset", "lint", ""],
        ["demo", "--minutes", "nan"],
        ["demo", "--runs-dir", ""],
        ["sample", "", "--prompt", "x"],
        ["export", "~nobody-of-this-name/x", "--format", "comfy", "-o", "x"],
    ],
)
def test_a_wrong_argument_is_named(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(arguments) == 2
    assert "error: argument" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["up", "--home", "file"], ["demo", "--runs-dir", "file/runs"], ["tag", "file"]]
)
def test_a_file_in_the_place_of_a_folder_is_named(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    assert status_of(arguments) == 2
    assert "file" in capsys.readouterr().err.splitlines()[-1]


def test_a_port_that_is_taken_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["up", "--home", str(tmp_path), "--port", str(port)]) == 2
    assert f"127.0.0.1:{port}: Address already in use. Choose another --port" in capsys.readouterr().err


def run(arguments: list[str], shell: str = "", **environ: str) -> subprocess.CompletedProcess[str]:
    command = " ".join([*FLOWLOOM, *arguments, shell])
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        env=os.environ | environ, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["schema"]])
def test_a_reader_that_has_seen_enough_is_no_error(arguments: list[str]) -> None:
    done = run(arguments, "| true")
    assert done.stderr == ""
    assert run(arguments, "| head -1").stderr == ""


@pytest.mark.parametrize("arguments", [["--help"], ["schema"], ["nonsense"]])
def test_closed_outputs_are_no_error(arguments: list[str]) -> None:
    done = run(arguments, ">&- 2>&-")
    assert done.returncode == (2 if arguments == ["nonsense"] else 0)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no full device")
def test_an_output_that_is_full_is_named() -> None:
    done = run(["schema"], ">/dev/full")
    assert (done.returncode, done.stderr) == (2, "flowloom: No space left on device.\n")


@pytest.mark.parametrize(
    "environ", [{"LC_ALL": "C"}, {"PYTHONIOENCODING": "ascii"}, {"LANG": "C", "PYTHONUTF8": "0"}]
)
def test_no_locale_loses_a_message(environ: dict[str, str], tmp_path: Path) -> None:
    done = run(["dataset", "lint", f"{tmp_path}/größe.jsonl"], **environ)
    assert done.returncode == 2
    assert "gr" in done.stderr
    assert "Traceback" not in done.stderr
    row = '{"filename": "ö.png", "caption_or_tags": "größe", "width": 8, "height": 8}\n'
    (tmp_path / "a.jsonl").write_text(row, encoding="utf-8")
    done = run(["dataset", "lint", f"{tmp_path}/a.jsonl"], **environ)
    assert "Traceback" not in done.stderr
    assert "1 prose" in done.stdout


def test_a_user_without_a_home_can_work() -> None:
    """As in a container that is started with a number for the user."""
    code = (
        "import os, pathlib; os.environ.pop('HOME', None)\n"
        "import pwd; pwd.getpwuid = lambda _: (_ for _ in ()).throw(KeyError())\n"
        "from flowloom.cli.main import main; raise SystemExit(main(['trainers', 'list']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_status_survives_a_store_s_threads() -> None:
    """And what was registered for the end is still done."""
    code = (
        "import atexit, obstore; from flowloom.streams import leave\n"
        "atexit.register(print, 'at the end'); print('first'); leave(3)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (3, "first\nat the end\n", "")
