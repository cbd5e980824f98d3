"""Images by the names that rows give them, read ahead from folders and stores, bounded in bytes."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from flowloom.data.fetch.disk_cache import DiskCache, Kept
from flowloom.data.fetch.memory_budget import MemoryBudget
from flowloom.errors import ImageError, SourceError
from flowloom.storage.base import ObjectInfo, OnState, StorageSection, scheme_of, shown
from flowloom.storage.local import Folder, find_image
from flowloom.storage.open import open_named, open_source
from flowloom.storage.remote import Remote, Request, event_loop

T = TypeVar("T")
MAX_BYTES = 256 * 2**20
"""A larger file is no picture that one trains on."""
OFFERED = ("http", "https", "s3", "gs", "az")
"""Schemes that rows may name: a data set made by others must not read files of this machine."""
DISK_THREADS = 4


class Fetch(Future[bytes | Path]):
    """One image on its way: its bytes, or the path of a local file.

    What is read ahead counts against the limit until its `result()` is taken, or `cancel()` is called.
    """

    def __init__(self, fetcher: Fetcher):
        super().__init__()
        self._fetcher = fetcher

    def result(self, timeout: float | None = None) -> bytes | Path:
        """The image; whoever waits here is served before everybody else.

        Raises:
            SourceError: the store does not have it or does not give it.
            ImageError: no local file is meant by the name.
        """
        if not self.done():
            self._fetcher.want(self)
        try:
            return super().result(timeout)
        finally:
            if self.done():
                self._fetcher.release(self)

    def cancel(self) -> bool:
        """Give it up."""
        is_cancelled = super().cancel()
        self._fetcher.release(self)
        return is_cancelled


class _DoesNotFit(Exception):
    """The memory for read-ahead has no room for a body; its request is made again when there is."""

    def __init__(self, size: int):
        super().__init__(size)
        self.size = size


@dataclass(frozen=True, slots=True)
class _Address:
    source: Remote
    name: str

    def __str__(self) -> str:
        return f"{self.source.root}/{self.name}"


class Fetcher:
    """Brings images to any number of threads of the process that made it.

    `fetch` returns at once; callers keep the futures in their order and take each result when they need it.
    Images from stores are read concurrently on the sources' event loop; with `storage.cache_dir` they are
    kept on disk, and each is compared with its store (by etag) when it is first used in a process.
    """

    def __init__(self, storage: StorageSection, on_state: OnState | None = None):
        """
        Raises:
            SourceError: `storage.cache_dir` cannot be used.
        """
        self.storage = storage
        self._on_state = on_state
        self.ahead: MemoryBudget[Fetch] = MemoryBudget(int(storage.read_ahead_mib * 2**20))
        self.cache: DiskCache | None = None
        if storage.cache_dir:
            self.cache = DiskCache(Path(storage.cache_dir).expanduser(), int(storage.cache_gib * 2**30))
        self._disk = ThreadPoolExecutor(DISK_THREADS, thread_name_prefix="disk")
        self._loop = event_loop()
        self._sources: dict[tuple[str, bool], Remote | Folder] = {}
        self._lock = threading.Lock()
        self._started_ns = time.time_ns()
        self._tasks: set[asyncio.Task[bytes | Path]] = set()

    def fetch(self, row_name: str, is_url_based: bool, folder: str | Path) -> Fetch:
        """The image that a row names: at a URL, or below `folder`, which may be an address such as s3://...

        Below a local folder a .jxl twin of the file wins, then the file, then other formats of its name;
        in a store, the name itself.
        """
        fetch = Fetch(self)
        try:
            address = self._address(row_name, is_url_based, folder)
        except SourceError as error:
            fetch.set_exception(error)
            return fetch
        if isinstance(address, Path):
            self._disk.submit(_look_up, fetch, address, row_name)
        else:
            self._loop.call_soon_threadsafe(self._start, fetch, address)
        return fetch

    def stat(self, row_name: str, is_url_based: bool, folder: str | Path) -> ObjectInfo:
        """What a store says of the image that a row names.

        Raises:
            SourceError: the store does not have it, or it is a local file.
        """
        address = self._address(row_name, is_url_based, folder)
        if isinstance(address, Path):
            raise SourceError(f"{row_name}: lies in a folder, which no store speaks for.")
        return address.source.stat(address.name)

    def want(self, fetch: Fetch) -> None:
        """Somebody waits for `fetch`."""
        self._loop.call_soon_threadsafe(self.ahead.want, fetch)

    def release(self, fetch: Fetch) -> None:
        """The content of `fetch` is taken, or will not be."""
        self._loop.call_soon_threadsafe(self.ahead.release, fetch)

    def close(self) -> None:
        """Stop what is under way; what nobody took is cancelled."""
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
        self._disk.shutdown(cancel_futures=True)
        if self.cache:
            self.cache.close()

    async def _stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _address(self, name: str, is_url_based: bool, folder: str | Path) -> _Address | Path:
        """Where an image is: in a store, or below the folder that is returned."""
        if not is_url_based:
            if not scheme_of(str(folder)):
                return Path(folder)
            source = self._source(str(folder), is_given=True)
            return source.path if isinstance(source, Folder) else _Address(source, name)
        if scheme_of(name) not in OFFERED:
            known = ", ".join(f"{scheme}://" for scheme in OFFERED)
            raise SourceError(f"{shown(name):.200}: an image's address begins with one of {known}.")
        scheme, _, rest = name.partition("://")
        host, _, path = rest.partition("/")
        source = self._source(f"{scheme}://{host}", is_given=False)
        assert isinstance(source, Remote)
        return _Address(source, path.partition("#")[0] if scheme.lower().startswith("http") else path)

    def _source(self, url: str, *, is_given: bool) -> Remote | Folder:
        """The store at `url`, given by the user, or named by a row."""
        with self._lock:
            if (url, is_given) not in self._sources:
                opened = open_source if is_given else open_named
                source = opened(url, self.storage, self._on_state)
                assert isinstance(source, Remote | Folder)
                self._sources[url, is_given] = source
            return self._sources[url, is_given]

    def _start(self, fetch: Fetch, address: _Address) -> None:
        task = self._loop.create_task(self._bring(fetch, address))
        self._tasks.add(task)
        task.add_done_callback(lambda task: self._hand_over(fetch, task))

    def _hand_over(self, fetch: Fetch, task: asyncio.Task[bytes | Path]) -> None:
        """Whatever became of `task` becomes of `fetch`: nobody waits for ever."""
        self._tasks.discard(task)
        if task.cancelled():
            fetch.cancel()
        if not fetch.set_running_or_notify_cancel():
            self.ahead.release(fetch)
            return
        error = task.exception()
        if error:
            fetch.set_exception(error)
        else:
            fetch.set_result(task.result())

    async def _bring(self, fetch: Fetch, address: _Address) -> bytes:
        await self.ahead.reserve(fetch)
        if fetch.cancelled():
            return b""
        kept = await self._stat(address)
        if kept and kept.compared_ns > self._started_ns:
            await self.ahead.reserve(fetch, kept.size)
            content = await self._read_kept(address, kept)
            if content is not None:
                return content
            kept = None
        while True:
            try:
                breaker = address.source.breaker
                return await breaker.with_retries(lambda: self._ask(fetch, address, kept), address.name)
            except _DoesNotFit as told:
                # Not within the request: whoever waits for memory must not hold a connection.
                await self.ahead.reserve(fetch, told.size)

    async def _ask(self, fetch: Fetch, address: _Address, kept: Kept | None) -> bytes:
        """One request, answered by the disk where the content is still that of `kept`."""
        answer = await address.source.request(Request(address.name, etag=kept.etag if kept else None))
        size = kept.size if answer.is_unchanged and kept else answer.size or 0
        if size > MAX_BYTES:
            answer.drop()
            raise SourceError(f"{address}: {size // 2**20} MiB, larger than {MAX_BYTES // 2**20}.")
        if not self.ahead.fits(fetch, size):
            answer.drop()
            raise _DoesNotFit(size)
        if answer.is_unchanged and kept:
            answer.drop()
            content = await self._read_kept(address, kept, was_compared=True)
            return await self._ask(fetch, address, None) if content is None else content
        content = await answer.body()
        self.ahead.learn(len(content))
        self.ahead.force(fetch, len(content))
        await self._keep(address, answer.etag, content)
        return content

    async def _stat(self, address: _Address) -> Kept | None:
        cache = self.cache
        return await self._on_disk(lambda: cache.look(str(address))) if cache else None

    async def _read_kept(self, address: _Address, kept: Kept, *, was_compared: bool = False) -> bytes | None:
        cache = self.cache
        assert cache
        return await self._on_disk(lambda: cache.read(str(address), kept, was_compared=was_compared))

    async def _keep(self, address: _Address, etag: str | None, content: bytes) -> None:
        cache = self.cache
        if cache and etag:
            await self._on_disk(lambda: cache.keep(str(address), etag, content))

    async def _on_disk(self, work: Callable[[], T]) -> T:
        return await self._loop.run_in_executor(self._disk, work)


def _look_up(fetch: Fetch, folder: Path, name: str) -> None:
    if not fetch.set_running_or_notify_cancel():
        return
    try:
        fetch.set_result(find_image(folder, name))
    except ImageError as error:
        fetch.set_exception(error)
