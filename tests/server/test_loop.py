"""No request holds up the event loop: what waits for files, SQLite or processes does so in other threads.

`watch` looks at the loop's own thread with a profile hook, and names each call there that can wait for a
disk, a database or a process: how fast or how busy this machine is does not matter. `lag_of` measures what
clients feel, the longest time between two turns of the loop, with large files behind the routes. The time in
which that thread was ready to run and other programs had the processor (/proc/self/task/*/schedstat) does not
count, and of some rounds the best one does: other programs also stop threads that hold the interpreter.
Where even plain computing threads make the loop late by more, that is the limit.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from PIL import Image

from flowloom.server.app import create_app
from flowloom.server.settings import Settings
from tests.server.every_route import REQUESTS, RUN

LIMIT_S = 0.05
ROUNDS = 5
_WAITING = {
    "posix": {
        *("open", "stat", "lstat", "scandir", "listdir", "mkdir", "rmdir", "unlink", "rename", "replace"),
        *("fsync", "read", "write", "readlink", "utime", "truncate", "statvfs", "waitpid", "link", "symlink"),
    },
    "io": {"open"},
    "_io": {"open", "read", "readline", "write", "flush", "close", "readall", "readinto"},
    "sqlite3": {"connect", "execute", "executemany", "executescript", "fetchall", "fetchone"},
    "fcntl": {"flock", "lockf"},
    "time": {"sleep"},
    "_posixsubprocess": {"fork_exec"},
    "select": {"select", "poll"},
}


class Served:
    """The studio in this process: its loop runs in a thread, which a witness may look at."""

    def __init__(self, home: Path):
        self.home, self.waits, self.lags = home, list[str](), list[float]()
        self.is_watched = False
        self.app: FastAPI = create_app(Settings(home, devices=("cpu",)))
        config = uvicorn.Config(self.app, port=0, log_level="warning", access_log=False, loop="asyncio")
        self.server = uvicorn.Server(config)
        self.app.state.is_closing = lambda: self.server.should_exit
        self.thread = threading.Thread(target=self._run, name="loop")

    def __enter__(self) -> Served:
        self.thread.start()
        while not self.server.started:
            time.sleep(0.02)
        port = self.server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.http = httpx.Client(base_url=self.url, timeout=120)
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()
        self.server.should_exit = True
        self.thread.join(30)

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        beating = asyncio.create_task(self._beat())
        await self.server.serve()
        beating.cancel()

    async def _beat(self) -> None:
        """Note how late each turn comes, without the time that other programs had the processor."""
        stat = Path(f"/proc/self/task/{threading.get_native_id()}/schedstat")
        file = stat.open()
        try:
            while True:
                before, waited = time.perf_counter(), _waited(file)
                await asyncio.sleep(0.005)
                late = time.perf_counter() - before - 0.005
                self.lags.append(late - (_waited(file) - waited))
        finally:
            file.close()

    def watch(self, what: Callable[[], Any]) -> list[str]:
        """What the loop's thread waits for while `what` is done."""
        self.waits.clear()
        asyncio.run_coroutine_threadsafe(self._set_hook(self._hear), self._loop()).result()
        try:
            what()
        finally:
            asyncio.run_coroutine_threadsafe(self._set_hook(None), self._loop()).result()
        return sorted(set(self.waits))

    def _loop(self) -> asyncio.AbstractEventLoop:
        return self.server.servers[0].get_loop()

    async def _set_hook(self, hook: Any) -> None:
        sys.setprofile(hook)

    def _hear(self, frame: FrameType, event: str, called: Any) -> None:
        if event != "c_call":
            return
        owner = getattr(called, "__self__", None)
        module = getattr(called, "__module__", None) or type(owner).__module__
        if called.__name__ in _WAITING.get(module, ()) and not _is_the_loops_own(frame):
            self.waits.append(f"{module}.{called.__name__} in {frame.f_code.co_filename}:{frame.f_lineno}")

    def limit(self) -> float:
        """The longest lag that is allowed: what plain threads cause on this machine now, if that is more."""

        def compute() -> None:
            until = time.monotonic() + 0.5
            while time.monotonic() < until:
                sum(range(1000))

        def compete() -> None:
            threads = [threading.Thread(target=compute) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

        return max(LIMIT_S, 2 * self.lag_of(compete))

    def lag_of(self, what: Callable[[], Any]) -> float:
        """The longest time for which the loop answers nobody while `what` is done, in the best round."""
        found: list[float] = []
        for _ in range(ROUNDS):
            self.lags.clear()
            what()
            found.append(max(self.lags, default=0.0))
            if found[-1] < LIMIT_S:
                break
        return min(found)


def _waited(file: Any) -> float:
    """How long this thread has waited for a processor so far, in seconds."""
    file.seek(0)
    return int(file.read().split()[1]) / 1e9


_ONCE = ("selectors.py", "linecache.py", "inspect.py", "importlib._bootstrap>")


def _is_the_loops_own(frame: FrameType | None) -> bool:
    """Whether asyncio itself waits for sockets, or a module or a function's source is read, once."""
    while frame is not None:
        if frame.f_code.co_filename.endswith(_ONCE):
            return True
        if frame.f_code is _waited.__code__:
            return True
        frame = frame.f_back
    return False


def fill(home: Path, num_events: int, num_images: int, log_mib: int) -> None:
    """Files behind every route, as many and as large as is asked."""
    run = home / "runs" / "large"
    (run / "studio").mkdir(parents=True)
    (run / "run.json").write_text(json.dumps({"trainer": "flow", "config": {"limits": {"max_steps": 10**6}}}))
    rest = json.dumps({"kind": "step", "epoch": 0, "loss": 0.1, "lr": 1e-4, "grad_norm": 0.5, "step_s": 1.0})
    with (run / "events.jsonl").open("w") as file:
        file.writelines(f'{{"seq": {i}, "time": 1.0, "step": {i}, {rest[1:]}\n' for i in range(num_events))
    (run / "log.txt").write_bytes(b"a line of a log that goes on for a long time\n" * (log_mib * 2**20 // 45))
    (run / "result.json").write_text(json.dumps([{"file": f"{i}.png"} for i in range(num_images)]))
    note = '[%d, {"cuda:0": [50.0, 1000.0, 60.0, 300.0]}]\n'
    (run / "studio" / "cards.jsonl").write_text("".join(note % i for i in range(num_images)))
    fill_results(run, num_images // 10)
    fill_datasets(home / "data", num_images)
    (home / "models").mkdir()
    (home / "models" / "large.safetensors").write_bytes(weights(num_images // 2))
    for i in range(num_images // 300):
        (home / "runs" / f"small-{i}").mkdir()
        (home / "runs" / f"small-{i}" / "run.json").write_text('{"config": {}}')


def fill_results(run: Path, num: int) -> None:
    samples, saved = run / "samples" / "step_00000001", run / "checkpoints" / "step_00000001"
    for folder in (samples, saved):
        folder.mkdir(parents=True)
    for i in range(num):
        Image.new("RGB", (64, 64)).save(samples / f"{i:05}.png")
    told = [{"file": f"{i:05}.png", "prompt": "a fox " * 20} for i in range(num)]
    (samples / "samples.json").write_text(json.dumps(told))
    (saved / "adapter.safetensors").write_bytes(weights(num))


def weights(num: int) -> bytes:
    """A file of `num` tensors."""
    names = {
        f"blocks.{i}.weight": {"dtype": "F32", "shape": [1], "data_offsets": [4 * i, 4 * i + 4]}
        for i in range(num)
    }
    header = json.dumps(names).encode()
    return len(header).to_bytes(8, "little") + header + bytes(4 * num)


def fill_datasets(data: Path, num: int) -> None:
    fox = data / "fox"
    fox.mkdir(parents=True)
    Image.new("RGB", (64, 64)).save(fox / "000000.png")
    content = (fox / "000000.png").read_bytes()
    for i in range(1, num):
        (fox / f"{i:06}.png").write_bytes(content)
    row = '{{"filename": "fox/{0:06}.png", "caption_or_tags": "a fox, {0}", "width": 64, "height": 64}}\n'
    (data / "rows.jsonl").write_text("".join(row.format(i) for i in range(num)))
    (data / "away").mkdir()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A studio with small files."""
    home = tmp_path_factory.mktemp("loop") / "home"
    fill(home, num_events=3000, num_images=60, log_mib=1)
    with pytest.MonkeyPatch.context() as patch, Served(home) as served:
        patch.setenv("FLOWLOOM_SECRETS", str(home.parent / "secrets.json"))
        served.http.patch("/api/queue", json={"paused": True})
        yield served


LARGE = [asked for method, _, asked, _ in REQUESTS if method == "GET" and "{}" not in asked]


def ask(served: Served, method: str, asked: str, more: dict[str, Any]) -> httpx.Response:
    """The answer, of a stream without end the beginning."""
    with served.http.stream(method, asked, **more) as answer:
        for num, _ in enumerate(answer.iter_raw()):
            if num > 3 and "event-stream" in answer.headers["content-type"]:
                break
    return answer


def test_every_route_is_asked_here(served: Served):
    routes = {
        (method.upper(), path)
        for path, operations in served.app.openapi()["paths"].items()
        for method in operations
    }
    assert routes == {(method, path) for method, path, _, _ in REQUESTS}


def test_no_route_waits_for_a_file_or_a_process_in_the_loop(served: Served):
    upload, waits = "", dict[str, list[str]]()
    for method, path, asked, more in REQUESTS:
        found: list[httpx.Response] = []
        asked = asked.format(upload) if asked == "{}" else asked
        seen = served.watch(lambda: found.append(ask(served, method, asked, more)))  # noqa: B023
        upload = found[0].headers.get("location", upload)
        assert found[0].status_code < 500 or path.startswith("/api/hub"), (
            method,
            asked,
            found[0].status_code,
        )
        if seen:
            waits[f"{method} {path}"] = seen
    assert not waits


def test_the_witness_sees_what_waits(served: Served):
    @served.app.get("/api/wrong")
    async def wrong() -> str:
        return Path(__file__).read_text()[:1]

    assert any("io.open" in each for each in served.watch(lambda: served.http.get("/api/wrong")))


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A studio with a million events, 100,000 images, a log of 100 MiB."""
    home = tmp_path_factory.mktemp("large") / "home"
    fill(home, num_events=1_000_000, num_images=100_000, log_mib=100)
    with Served(home) as served:
        yield served


@pytest.mark.slow
@pytest.mark.parametrize("asked", LARGE)
def test_large_files_hold_up_nobody(large: Served, asked: str):
    lag = large.lag_of(lambda: ask(large, "GET", asked, {}))
    assert lag < LIMIT_S or lag < large.limit()


@pytest.mark.slow
def test_clients_that_leave_during_the_replay_of_a_million_events_hold_up_nobody(large: Served):
    def come_and_go() -> None:
        for _ in range(50):
            with large.http.stream("GET", f"{RUN}/events") as answer:
                next(answer.iter_raw())
        time.sleep(0.5)

    lag = large.lag_of(come_and_go)
    assert lag < LIMIT_S or lag < large.limit()
    began = time.monotonic()
    while threading.active_count() > 60:
        assert time.monotonic() < began + 10, "what reads for clients that have left ends"
        time.sleep(0.1)


@pytest.mark.slow
def test_fifty_clients_that_replay_a_million_events_leave_the_others_their_answers(large: Served):
    stop = threading.Event()

    def replay() -> None:
        with (
            httpx.Client(base_url=large.url, timeout=60) as client,
            client.stream("GET", f"{RUN}/events") as answer,
        ):
            for _ in answer.iter_raw():
                if stop.is_set():
                    return

    clients = [threading.Thread(target=replay) for _ in range(50)]
    for client in clients:
        client.start()
    try:
        large.http.get("/api/health").raise_for_status()
        times = sorted(elapsed(large, "/api/runs?limit=10") for _ in range(15))
        assert times[len(times) // 2] < 2.0, times
    finally:
        stop.set()
        for client in clients:
            client.join()


def elapsed(served: Served, asked: str) -> float:
    began = time.monotonic()
    served.http.get(asked).raise_for_status()
    return time.monotonic() - began
