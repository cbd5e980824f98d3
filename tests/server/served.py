"""A studio in the process of its test, with a witness of what its event loop waits for and for how long.

`watch` looks at the loop's own thread with a profile hook, and names each call there that can wait for a
disk, a database or a process: how fast or how busy this machine is does not matter. `lag_of` measures for
how long the loop had no turn because of this process, with large files behind the routes. `Clocks` separates
that from a busy machine: time in which threads of this process were ready to run and other programs had the
processor (/proc/self/task/*/schedstat) does not count, unless this process computed meanwhile. Of some rounds
the best one counts.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI

from flowloom.server.app import create_app
from flowloom.server.connections import Connection
from flowloom.server.settings import Settings

LIMIT_S = 0.1
BEAT_S = 0.005
ROUNDS = 10
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
        # A full collection looks at every object of the process: those of pytest are no part of the studio.
        gc.collect()
        gc.freeze()
        self.app: FastAPI = create_app(Settings(home, devices=("cpu",)))
        config = uvicorn.Config(
            self.app, port=0, log_level="warning", access_log=False, loop="asyncio", http=Connection
        )
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
        gc.unfreeze()

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        beating = asyncio.create_task(self._beat())
        await self.server.serve()
        beating.cancel()

    async def _beat(self) -> None:
        """Note for how long this process kept each turn waiting."""
        before = Clocks.read()
        while True:
            await asyncio.sleep(BEAT_S)
            now = Clocks.read()
            self.lags.append(now.blocked_since(before))
            before = Clocks.read()

    def watch(self, what: Callable[[], Any]) -> list[str]:
        """The calls that the loop's thread waits for while `what` is done."""
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

    def lag_of(self, what: Callable[[], Any]) -> float:
        """The longest time for which the loop is kept from a turn while `what` is done, in the best round."""
        found: list[float] = []
        for _ in range(ROUNDS):
            self.lags.clear()
            what()
            num_beats = len(self.lags)
            while len(self.lags) < num_beats + 2:
                time.sleep(BEAT_S)
            found.append(max(self.lags, default=0.0))
            if found[-1] < LIMIT_S:
                break
        return min(found)


@dataclass(frozen=True)
class Clocks:
    """The clocks of the machine, of this process and of its threads at one moment, in seconds."""

    time: float
    computed: float
    """By all threads of this process."""
    own_wait: float
    """For a processor, by the loop's thread."""
    waits: dict[str, float]
    """For a processor, by each thread."""

    @classmethod
    def read(cls) -> Clocks:
        waits = dict[str, float]()
        for task in Path("/proc/self/task").iterdir():
            with suppress(OSError):
                waits[task.name] = int((task / "schedstat").read_text().split()[1]) / 1e9
        own = waits[str(threading.get_native_id())]
        return cls(time.perf_counter(), time.process_time(), own, waits)

    def blocked_since(self, before: Clocks) -> float:
        """For how long this process kept its loop from a turn: no longer than it computed, or than none of
        its threads waited for a processor.
        """
        late = self.time - before.time - BEAT_S
        waited = sum(max(0.0, wait - before.waits.get(name, wait)) for name, wait in self.waits.items())
        computed = self.computed - before.computed
        return min(late - (self.own_wait - before.own_wait), max(computed, late - waited))


_ONCE = ("selectors.py", "linecache.py", "inspect.py", "importlib._bootstrap>")


def _is_the_loops_own(frame: FrameType | None) -> bool:
    """True if asyncio itself waits for sockets, or a module or a function's source is read, once."""
    while frame is not None:
        if frame.f_code.co_filename.endswith(_ONCE):
            return True
        if frame.f_code is Clocks.read.__code__:
            return True
        frame = frame.f_back
    return False
