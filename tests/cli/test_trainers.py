"""`flowloom trainers` in words: a checkout is named once, by who owns the machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from flowloom.cli.trainers import trainers
from flowloom.errors import ConfigError, RunError
from flowloom.trainers.checkouts import checkouts_of
from tests.fakes.flow_checkout import make_checkout


@pytest.fixture(autouse=True)
def separate_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWLOOM_TRAINERS", str(tmp_path / "config" / "trainers.json"))


def test_a_checkout_is_named_with_its_own_python(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkout = make_checkout(tmp_path / "flow")
    python = checkout / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()
    trainers(["install", "flow-upstream", "--path", str(checkout)])
    assert "src.trainer.train_chroma" in capsys.readouterr().out
    (found,) = checkouts_of("flow-upstream")
    assert (found.path, found.python) == (checkout, python)
    trainers([])
    assert str(checkout) in capsys.readouterr().out


def test_the_list_says_what_is_not_installed(capsys: pytest.CaptureFixture[str]) -> None:
    trainers(["list"])
    lines = capsys.readouterr().out.splitlines()
    assert next(line for line in lines if line.startswith("flow ")).endswith("part of Flowloom")
    upstream = next(line for line in lines if line.startswith("flow-upstream"))
    assert upstream.endswith("not installed: flowloom trainers install flow-upstream")


def test_a_path_that_is_no_checkout_or_no_python_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="not a checkout"):
        trainers(["install", "flow-upstream", "--path", str(tmp_path)])
    checkout = make_checkout(tmp_path / "flow")
    with pytest.raises(ConfigError, match="does not exist"):
        trainers(["install", "flow-upstream", "--path", str(checkout), "--python", str(tmp_path / "no")])
    assert not checkouts_of("flow-upstream")
