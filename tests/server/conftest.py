"""A real studio in a separate process, and small real runs for it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from flowloom.config.run import RunConfig
from tests.conftest import TinyFamily
from tests.engine.conftest import make_config, synthetic_data  # noqa: F401 -- fixtures

PATIENCE_S = 120.0
OVER = {"finished", "stopped", "failed", "interrupted", "cancelled"}


def wait_for(what: Callable[[], Any], seconds: float = PATIENCE_S) -> Any:
    """The result of `what` as soon as it is true."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := what():
            return found
        time.sleep(0.05)
    raise AssertionError(f"not within {seconds} s: {what}")


class Studio:
    """`flowloom up` on a free port, to be talked to, killed and started again."""

    def __init__(self, home: Path, *flags: str):
        self.home, self.flags = home, flags
        self.process: subprocess.Popen[bytes] | None = None
        self.url = ""

    def start(self) -> Studio:
        """Start it and wait for its first answer."""
        self.home.mkdir(exist_ok=True)
        note = self.home / ".flowloom" / "server.json"
        note.unlink(missing_ok=True)
        arguments = ["up", "--home", str(self.home), "--port", "0", *self.flags]
        with (self.home / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "flowloom.cli.main", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )
        wait_for(lambda: note.exists() or self._has_died())
        self.url = json.loads(note.read_text())["url"]
        self.http = httpx.Client(base_url=self.url, timeout=30)
        wait_for(self._answers)
        return self

    def _answers(self) -> bool:
        try:
            return self.http.get("/api/health").status_code == 200
        except httpx.TransportError:
            return self._has_died()

    def _has_died(self) -> bool:
        assert self.process
        assert self.process.poll() is None, (self.home / "server.log").read_text()
        return False

    def end(self, how: int = signal.SIGTERM) -> None:
        """End it by a signal, and bury it."""
        if self.process:
            self.process.send_signal(how)
            self.process.wait(30)
            self.process = None
            self.http.close()

    def get(self, path: str, **params: Any) -> Any:
        """The JSON at `path`."""
        answer = self.http.get(path, params=params)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def post(self, path: str, body: Any = None, status: int | None = None) -> Any:
        """The answer to posting `body`."""
        answer = self.http.post(path, json=body)
        assert answer.status_code == status if status else answer.is_success, answer.text
        return answer.json() if answer.content else None

    def run(self, run_id: str) -> Any:
        """How the run stands."""
        return self.get(f"/api/runs/{run_id}")

    def wait(self, run_id: str, *states: str) -> Any:
        """The run, as soon as it is in one of `states`, or over where none are given."""
        wanted = set(states) or OVER

        def reached() -> Any:
            run = self.run(run_id)
            over_otherwise = run["state"] in OVER - wanted
            assert not over_otherwise, f"{run}\n{(self.home / 'runs' / run_id / 'log.txt').read_text()}"
            return run if run["state"] in wanted else None

        return wait_for(reached)

    def events(self, run_id: str) -> list[dict[str, Any]]:
        """The events in the run's events.jsonl."""
        path = self.home / "runs" / run_id / "events.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture(scope="session")
def tiny_roots(tiny_family: TinyFamily, synthetic_data: Path) -> list[str]:  # noqa: F811
    """Flags that let a studio read the tiny family."""
    family = tiny_family
    roots = [family.chroma_path.parent, family.vae_path.parent, family.t5_path, synthetic_data]
    return [word for i, root in enumerate(roots) for word in ("--root", f"tiny{i}={root}")]


@pytest.fixture
def studio_at(tmp_path: Path, tiny_roots: list[str]) -> Iterator[Callable[..., Studio]]:
    """`studio_at("home", "--flag")`: studios that may read the tiny family; all ended at the end."""
    studios: list[Studio] = []

    def make(name: str = "home", *more: str) -> Studio:
        studios.append(Studio(tmp_path / name, *tiny_roots, *more))
        return studios[-1]

    yield make
    for studio in studios:
        end_runs(studio.home)
        studio.end(signal.SIGKILL)


@pytest.fixture
def studio(studio_at: Callable[..., Studio]) -> Studio:
    """A studio that runs."""
    return studio_at().start()


@pytest.fixture(scope="module")
def one_studio(tmp_path_factory: pytest.TempPathFactory, tiny_roots: list[str]) -> Iterator[Studio]:
    """A studio for all tests of a file, for those that leave nothing behind."""
    studio = Studio(tmp_path_factory.mktemp("studio") / "home", *tiny_roots).start()
    yield studio
    end_runs(studio.home)
    studio.end(signal.SIGKILL)


def end_runs(home: Path) -> None:
    """Kill what a failed test left running."""
    for record in home.glob("runs/*/studio/process.json"):
        content = json.loads(record.read_text())
        for pid in (content["pid"], content["supervisor_pid"]):
            if pid and not (record.parent / "exit.json").exists():
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue


@pytest.fixture
def tiny_config(make_config: Callable[..., RunConfig]) -> Callable[..., dict[str, Any]]:  # noqa: F811
    """`tiny_config(limits={...})`: a small run's configuration as a client sends it."""
    return lambda **sections: make_config(**sections).model_dump(mode="json")
