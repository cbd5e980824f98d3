"""Small pictures of large ones, each made once, by processes that a bad picture may take down."""

from __future__ import annotations

import hashlib
import json
import os
import queue
import select
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowloom.server.endpoints import environ_for_processes
from flowloom.server.problems import ServiceError

SIZES = (128, 256, 512, 1024)
NUM_PROCESSES = 2
PATIENCE_S = 30.0
IDLE_S = 60.0
CACHE_BYTES = 4 * 2**30
"""Beyond this, what was not looked at for longest goes."""
MADE_BETWEEN_SWEEPS = 500


class NotAnImage(ServiceError):
    status, code, title = 415, "not-an-image", "That file is no picture."


def thumbnail(source: Path, size: int, cache_dir: Path) -> Path:
    """A WebP file of `source` whose longer side has at most `size` pixels, made anew when `source` changed.

    It is found again by what tells the content of a file, not by its name: a picture that moves keeps it.

    Raises:
        NotAnImage: `source` cannot be read as a picture.
    """
    stat = source.stat()
    key = f"{stat.st_dev}:{stat.st_ino}:{stat.st_mtime_ns}:{stat.st_size}"
    return _made(key, {"source": str(source), "size": size}, cache_dir)


@dataclass(frozen=True)
class InStore:
    """A picture in a bucket."""

    url: str
    storage: dict[str, Any]
    name: str
    stamp: str
    """Another one when the picture changed."""


def thumbnail_from_store(source: InStore, size: int, cache_dir: Path) -> Path:
    """As `thumbnail`, of a picture in a bucket.

    Raises:
        NotAnImage: it cannot be had, or cannot be read as a picture.
    """
    work = {"url": source.url, "storage": source.storage, "source": source.name, "size": size}
    return _made(f"{source.url}\0{source.name}\0{source.stamp}", work, cache_dir)


def _made(key: str, work: dict[str, Any], cache_dir: Path) -> Path:
    """The file of the thumbnail that `work` asks for, which is made where it is not there."""
    name = hashlib.sha256(f"{key}\0{work['size']}".encode()).hexdigest()
    path = cache_dir / name[:2] / f"{name}.webp"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{name}.{os.getpid()}.{os.urandom(4).hex()}.tmp")
        try:
            _POOL.shrink(work | {"to": str(partial)})
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        _POOL.sweep_at_times(cache_dir)
    return path


def sweep(cache_dir: Path, max_bytes: int) -> None:
    """Remove what was not read for longest until all that is left has at most `max_bytes`."""
    found: list[tuple[float, int, Path]] = []
    for path in cache_dir.glob("*/*.webp"):
        with suppress(OSError):
            stat = path.stat()
            found.append((max(stat.st_atime, stat.st_mtime), stat.st_size, path))
    excess = sum(size for _, size, _ in found) - max_bytes
    for _, size, path in sorted(found):
        if excess <= 0:
            return
        path.unlink(missing_ok=True)
        excess -= size


class _Shrinker:
    """One process that makes thumbnails; it is there while there is work, and a minute longer."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._expiry: threading.Timer | None = None

    def shrink(self, work: dict[str, Any]) -> str:
        """Why it could not be done; nothing where it was."""
        with self._lock:
            if self._expiry:
                self._expiry.cancel()
            try:
                return self._ask(work)
            finally:
                self._expiry = threading.Timer(IDLE_S, self._expire)
                self._expiry.daemon = True
                self._expiry.start()

    def _ask(self, work: dict[str, Any]) -> str:
        if self._process is None or self._process.poll() is not None:
            words = [sys.executable, "-m", "flowloom.server.media.thumbnail_worker"]
            environ = environ_for_processes(needs_secrets=False)
            self._process = subprocess.Popen(
                words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environ
            )
        process = self._process
        assert process.stdin
        assert process.stdout
        try:
            process.stdin.write(json.dumps(work).encode() + b"\n")
            process.stdin.flush()
            is_answered = select.select([process.stdout], [], [], PATIENCE_S)[0]
            answer = process.stdout.readline() if is_answered else b""
        except OSError:
            is_answered, answer = True, b""
        if answer:
            told = json.loads(answer)
            if told["errno"]:  # the disk is full, say: the picture is not to blame
                raise OSError(told["errno"], told["error"], str(work["to"]))
            return told["error"]
        process.kill()
        self._bury()
        return "its decoder broke down" if is_answered else f"it takes longer than {PATIENCE_S:g} s to decode"

    def _expire(self) -> None:
        with self._lock:
            self._bury()

    def _bury(self) -> None:
        if self._process:
            for pipe in (self._process.stdin, self._process.stdout):
                with suppress(OSError):
                    if pipe:
                        pipe.close()
            self._process.wait()
            self._process = None


class _Pool:
    """A few of these processes, each asked by one thread at a time."""

    def __init__(self) -> None:
        self._idle: queue.LifoQueue[_Shrinker] = queue.LifoQueue()
        for _ in range(NUM_PROCESSES):
            self._idle.put(_Shrinker())
        self._num_made = 0

    def shrink(self, work: dict[str, Any]) -> None:
        """Make one thumbnail.

        Raises:
            NotAnImage: its source cannot be read as a picture.
        """
        shrinker = self._idle.get()
        try:
            reason = shrinker.shrink(work)
        finally:
            self._idle.put(shrinker)
        if reason:
            raise NotAnImage(
                f"{Path(work['source']).name}: {reason.rstrip('.')}.", "Only whole pictures have thumbnails."
            )

    def sweep_at_times(self, cache_dir: Path) -> None:
        """Keep the cache within its bounds, after every few hundred thumbnails."""
        self._num_made += 1
        if self._num_made % MADE_BETWEEN_SWEEPS == 0:
            sweep(cache_dir, CACHE_BYTES)


_POOL = _Pool()
