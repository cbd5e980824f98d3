"""No tracker ends a run: not when it cannot start, goes down, or hangs at the end; the run says so once."""

from __future__ import annotations

import atexit
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flowloom.config.flow_format.read import load_config
from flowloom.engine import trackers
from flowloom.engine.__main__ import run_engine
from flowloom.engine.trackers import Tracker, close_all
from flowloom.loggers.base import LoggerSpec
from flowloom.run.directory import RunDir
from flowloom.run.events import read_events
from tests.fakes.hub import Hub


class Troubled(LoggerSpec):
    """A tracker that fails or hangs at one moment."""

    at: str
    hangs: bool = False

    def build(self, run_dir: Path, config: dict[str, Any]) -> Any:
        self.meet("start")
        return self

    def log(self, event: dict[str, Any]) -> None:
        self.meet(f"step {event['step']}")

    def close(self) -> None:
        self.meet("end")

    def meet(self, moment: str) -> None:
        if moment == self.at and self.hangs:
            threading.Event().wait(30)
        elif moment == self.at:
            raise LookupError("no such project\nand a page of HTML")


@pytest.fixture
def said() -> list[dict[str, Any]]:
    return []


@pytest.fixture
def follow(
    said: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., float]]:
    """Five events to a tracker; the seconds that closing it took."""
    monkeypatch.setattr(trackers, "CLOSE_S", 0.5)

    def run(**trouble: Any) -> float:
        tracker = Tracker(Troubled(**trouble), "troubled", tmp_path, {}, lambda _kind, **f: said.append(f))
        for step in range(5):
            tracker.log({"kind": "step", "step": step})
        began = time.monotonic()
        close_all([tracker])
        return time.monotonic() - began

    yield run
    atexit.unregister(trackers._leave)


@pytest.mark.parametrize("at", ["start", "step 0", "step 3", "end"])
def test_a_tracker_that_fails_is_left_with_one_warning(
    follow: Callable[..., float], said: list[dict[str, Any]], at: str
) -> None:
    assert follow(at=at) < 5
    assert [one["message"] for one in said] == ["troubled: no such project."]
    assert "continues without it" in said[0]["hint"]


@pytest.mark.parametrize("at", ["start", "step 3", "end"])
def test_a_tracker_that_hangs_is_left_after_a_bounded_wait(
    follow: Callable[..., float], said: list[dict[str, Any]], at: str
) -> None:
    assert 0.4 < follow(at=at, hangs=True) < 5
    assert [one["message"] for one in said] == ["troubled: did not send its last events in time."]


def test_a_tracker_that_hangs_holds_a_bounded_number_of_events(
    said: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers, "MOST_WAITING", 20)
    tracker = Tracker(
        Troubled(at="start", hangs=True), "troubled", tmp_path, {}, lambda _kind, **f: said.append(f)
    )
    for step in range(100):
        tracker.log({"kind": "step", "step": step})
    assert tracker._waiting.qsize() == 20
    assert len(said) == 1


def warnings(run_dir: RunDir) -> list[str]:
    return [event["message"] for event in read_events(run_dir.events_jsonl) if event["kind"] == "warning"]


@pytest.mark.parametrize("answers", ["refuses", "hangs"])
def test_wandb_that_is_down_ends_no_run(make_run: Callable[..., RunDir], answers: str) -> None:
    """The real package, with a server that is not there, or accepts connections and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if answers == "hangs":
            server.listen()
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        run_dir = make_run(loggers=[{"kind": "wandb"}], limits={"max_steps": 3})
        driver = (
            "import sys; from flowloom.engine import trackers; trackers.CLOSE_S = 3.0; "
            "from flowloom.engine.__main__ import run_engine; from flowloom.run.process import main; "
            "sys.exit(main('flowloom.engine', run_engine))"
        )
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "WANDB_BASE_URL": address,
            "WANDB_API_KEY": "local-" + "0123456789" * 4,
        }
        began = time.monotonic()
        process = subprocess.run(
            [sys.executable, "-c", driver, str(run_dir.path)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert process.returncode == 0, process.stderr
    assert time.monotonic() - began < 60
    kinds = [event["kind"] for event in read_events(run_dir.events_jsonl)]
    assert (kinds.count("step"), kinds.count("finished"), kinds.count("failed")) == (3, 1, 0)
    assert [message for message in warnings(run_dir) if message.startswith("wandb: ")] == warnings(run_dir)
    assert len(warnings(run_dir)) == 1


@pytest.mark.parametrize("kind", ["wandb", "hub"])
def test_a_missing_token_ends_no_run(
    make_run: Callable[..., RunDir], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    for name in ("WANDB_API_KEY", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    sections: dict[str, Any] = (
        {"loggers": [{"kind": "wandb"}]} if kind == "wandb" else {"hub": {"repo_id": "me/model"}}
    )
    run_dir = make_run(**sections, limits={"max_steps": 2})
    run_engine(run_dir)
    (warning,) = warnings(run_dir)
    assert warning.startswith(f"{kind}: ")
    assert "is not set" in warning
    assert any(event["kind"] == "finished" for event in read_events(run_dir.events_jsonl))
    config = run_dir.read_run()["config"]
    notes = load_config(config, [], run_dir.run_json).notes
    assert any("WANDB_API_KEY" in note or "HF_TOKEN" in note for note in notes)


def test_a_scratch_folder_that_cannot_be_made_ends_no_run(make_run: Callable[..., RunDir], hub: Hub) -> None:
    run_dir = make_run(hub={"repo_id": "me/model"}, training={"save_every": 1}, limits={"max_steps": 2})
    (run_dir.path / "uploads").write_text("a file in the way")
    run_engine(run_dir)
    assert len(warnings(run_dir)) == 1
    assert run_dir.latest_checkpoint() == run_dir.checkpoint_dir(2)
