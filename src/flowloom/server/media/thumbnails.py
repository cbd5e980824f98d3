"""Cached thumbnails, made by worker processes that a broken image may crash."""

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

from flowloom.files import replacing
from flowloom.server.endpoints import environ_for_processes
from flowloom.server.problems import ServiceError

SIZES = (128, 256, 512, 1024)
NUM_PROCESSES = 2
PATIENCE_S = 30.0
IDLE_S = 60.0
CACHE_BYTES = 4 * 2**30
"""Above this, the least recently used thumbnails are removed."""
MADE_BETWEEN_SWEEPS = 500


class NotAnImage(ServiceError):
    status, code, title = 415, "not-an-image", "The file is not an image."


def thumbnail(source: Path, size: int, cache_dir: Path) -> Path:
    """A WebP file of `source` whose longer side has at most `size` pixels, updated when `source` changes.

    The key identifies the file, not its name, so a moved image keeps its thumbnail.

    Raises:
        NotAnImage: `source` is not a readable image.
    """
    stat = source.stat()
    key = f"{stat.st_dev}:{stat.st_ino}:{stat.st_mtime_ns}:{stat.st_size}"
    return _cached(key, {"source": str(source), "size": size}, cache_dir)


@dataclass(frozen=True)
class InStore:
    """An image in an object store."""

    url: str
    storage: dict[str, Any]
    name: str
    stamp: str
    """Differs after the image changed."""


def thumbnail_from_store(source: InStore, size: int, cache_dir: Path) -> Path:
    """Like `thumbnail`, for an image in an object store.

    Raises:
        NotAnImage: it cannot be downloaded, or is not a readable image.
    """
    work = {"url": source.url, "storage": source.storage, "source": source.name, "size": size}
    return _cached(f"{source.url}\0{source.name}\0{source.stamp}", work, cache_dir)


def _cached(key: str, work: dict[str, Any], cache_dir: Path) -> Path:
    """The thumbnail for `work`, made if it is not in the cache."""
    name = hashlib.sha256(f"{key}\0{work['size']}".encode()).hexdigest()
    path = cache_dir / name[:2] / f"{name}.webp"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{name}.{os.getpid()}.{os.urandom(4).hex()}.tmp")
        with replacing(path, partial, is_durable=False):
            _POOL.make(work | {"to": str(partial)})
        _POOL.sweep_sometimes(cache_dir)
    return path


def sweep(cache_dir: Path, max_bytes: int) -> None:
    """Remove the least recently read thumbnails until the rest has at most `max_bytes`."""
    entries: list[tuple[float, int, Path]] = []
    for path in cache_dir.glob("*/*.webp"):
        with suppress(OSError):
            stat = path.stat()
            entries.append((max(stat.st_atime, stat.st_mtime), stat.st_size, path))
    excess = sum(size for _, size, _ in entries) - max_bytes
    for _, size, path in sorted(entries):
        if excess <= 0:
            return
        path.unlink(missing_ok=True)
        excess -= size


class _Worker:
    """One thumbnail process, started on demand and stopped after a minute without work."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._expiry: threading.Timer | None = None

    def make(self, work: dict[str, Any]) -> str:
        """Make one thumbnail. Return why it failed, or an empty string."""
        with self._lock:
            if self._expiry:
                self._expiry.cancel()
            try:
                return self._request(work)
            finally:
                self._expiry = threading.Timer(IDLE_S, self._expire)
                self._expiry.daemon = True
                self._expiry.start()

    def _request(self, work: dict[str, Any]) -> str:
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
            result = json.loads(answer)
            if result["errno"]:  # such as a full disk: not the fault of the image
                raise OSError(result["errno"], result["error"], str(work["to"]))
            return result["error"]
        process.kill()
        self._reap()
        return "its decoder crashed" if is_answered else f"decoding takes longer than {PATIENCE_S:g} s"

    def _expire(self) -> None:
        with self._lock:
            self._reap()

    def _reap(self) -> None:
        if self._process:
            for pipe in (self._process.stdin, self._process.stdout):
                with suppress(OSError):
                    if pipe:
                        pipe.close()
            self._process.wait()
            self._process = None


class _Pool:
    """A few worker processes, each used by one thread at a time."""

    def __init__(self) -> None:
        self._idle: queue.LifoQueue[_Worker] = queue.LifoQueue()
        for _ in range(NUM_PROCESSES):
            self._idle.put(_Worker())
        self._num_made = 0

    def make(self, work: dict[str, Any]) -> None:
        """Make one thumbnail.

        Raises:
            NotAnImage: its source is not a readable image.
        """
        worker = self._idle.get()
        try:
            reason = worker.make(work)
        finally:
            self._idle.put(worker)
        if reason:
            raise NotAnImage(
                f"{Path(work['source']).name}: {reason.rstrip('.')}.", "Replace or remove the file."
            )

    def sweep_sometimes(self, cache_dir: Path) -> None:
        """Limit the size of the cache after every few hundred thumbnails."""
        self._num_made += 1
        if self._num_made % MADE_BETWEEN_SWEEPS == 0:
            sweep(cache_dir, CACHE_BYTES)


_POOL = _Pool()
