"""A rented box costs money while nothing runs: the owner's command, and the home that outlives the box."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flowloom.server.runs.idle import IdleHook
from flowloom.server.serve import default_home
from tests.server.conftest import Studio, wait_for

Configs = Callable[..., dict[str, Any]]
COMMAND = 'echo "$FLOWLOOM_HOME" >> rested; echo said'
PATIENCE_S = 2.0


def times(home: Path) -> int:
    rested = home / "rested"
    return len(rested.read_text().splitlines()) if rested.exists() else 0


@pytest.mark.slow
def test_the_command_runs_once_after_each_rest_and_never_beside_a_run(
    studio_at: Callable[..., Studio], tiny_config: Configs
):
    studio = studio_at("home", "--when-idle", COMMAND, "--idle-minutes", str(PATIENCE_S / 60)).start()
    config = tiny_config(limits={"max_steps": 100_000})
    studio.post("/api/flow/train/start", {"name": "long", "config": config}, 201)
    time.sleep(2 * PATIENCE_S)
    assert times(studio.home) == 0, "a run runs"
    studio.post("/api/runs/long/kill")
    wait_for(lambda: times(studio.home))
    time.sleep(2 * PATIENCE_S)
    assert times(studio.home) == 1, "once for each rest"
    assert (studio.home / "rested").read_text().strip() == str(studio.home)
    assert (studio.home / ".flowloom" / "idle.log").read_text() == "said\n"
    # Reading is what open pages do all the time; changing something is a person's.
    studio.http.patch("/api/queue", json={"paused": True})
    studio.post("/api/flow/train/start", {"name": "held", "config": config}, 201)
    wait_for(lambda: times(studio.home) == 2)
    assert studio.run("held")["state"] == "queued", "what a paused queue holds keeps no box alive"


def test_a_use_puts_the_rest_off(tmp_path: Path):
    (tmp_path / ".flowloom").mkdir()
    hook = IdleHook("echo x >> rested", 3600.0, tmp_path)
    hour_ago = time.monotonic() - 3601
    hook.check(is_busy=False, used_at=hour_ago)
    assert times(tmp_path) == 0, "the studio itself has only begun"
    hook = IdleHook("echo x >> rested", 0.0, tmp_path)
    hook.check(is_busy=False, used_at=time.monotonic() + 60)
    hook.check(is_busy=True, used_at=time.monotonic())
    assert times(tmp_path) == 0


def test_a_studio_without_a_given_home_uses_the_volume_that_outlives_the_box(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("FLOWLOOM_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    volume = Path("/dev/shm")
    if not volume.is_mount():
        pytest.skip("/dev/shm is no mount here")
    assert default_home(volume) == volume / "flowloom"
    assert default_home(tmp_path) == Path(), "a mere folder outlives nothing"
    (tmp_path / ".flowloom").mkdir()
    assert default_home(volume) == Path(), "a studio lives here already"
    monkeypatch.setenv("FLOWLOOM_HOME", "elsewhere")
    assert default_home(volume) == Path("elsewhere")


@pytest.mark.parametrize("minutes", ["0", "-1", "soon", "nan", "inf"])
def test_minutes_that_mean_nothing_are_refused(minutes: str, capsys: pytest.CaptureFixture[str]):
    from flowloom.cli.main import main

    with pytest.raises(SystemExit):
        main(["up", "--idle-minutes", minutes])
    assert "more than 0" in capsys.readouterr().err
