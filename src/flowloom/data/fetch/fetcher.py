"""Prefetch the images of rows from folders and stores, within a limit of bytes."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from flowloom.data.fetch.disk_cache import CachedFile, DiskCache
from flowloom.data.fetch.memory_budget import MemoryBudget
from flowloom.data.fetch.ranged_file import RangedFile
from flowloom.errors import ImageError, SourceError
from flowloom.storage.base import ObjectInfo, OnState, StorageSection, scheme_of, shown
from flowloom.storage.local import Folder, find_image
from flowloom.storage.open import open_named, open_source
from flowloom.storage.remote import Remote, Request, event_loop

T = TypeVar("T")
MAX_BYTES = 256 * 2**20
"""Maximum size of an image file."""
ROW_SCHEMES = ("http", "https", "s3", "gs", "az")
"""Schemes that rows may use; a dataset by others must not read files of this machine."""
DISK_THREADS = 4


class Fetch(Future[bytes | Path]):
    """An image being downloaded: its bytes, or the path of a local file.

    Prefetched bytes count against the limit until `result()` or `cancel()` is called.
    """

    def __init__(self, fetcher: Fetcher):
        super().__init__()
        self._fetcher = fetcher

    def result(self, timeout: float | None = None) -> bytes | Path:
        """The image; a fetch that is waited for is served first.

        Raises:
            SourceError: it cannot be read from the store.
            ImageError: no local file has this name.
        """
        if not self.done():
            self._fetcher.want(self)
        try:
            return super().result(timeout)
        finally:
            if self.done():
                self._fetcher.release(self)

    def cancel(self) -> bool:
        """Cancel the download."""
        is_cancelled = super().cancel()
        self._fetcher.release(self)
        return is_cancelled


class _DoesNotFit(Exception):
    """The memory budget has no room for a body; the request is repeated when it has."""

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
    """Downloads images for any number of threads of one process.

    `fetch` returns immediately; callers keep the futures in order and take each result when they need it.
    Images from stores are read concurrently on the stores' event loop. With `storage.cache_dir` they are
    cached on disk, and compared with the store by etag at the first use in a process.
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
        """Start to read the image of a row: at a URL, or in `folder`, which may be a URL such as s3://...

        In a local folder, the .jxl twin of a file comes first, then the file, then its stem in other formats;
        in a store, only the name itself.
        """
        fetch = Fetch(self)
        try:
            address = self._address(row_name, is_url_based, folder)
        except SourceError as error:
            fetch.set_exception(error)
            return fetch
        if isinstance(address, Path):
            self._disk.submit(_find_local, fetch, address, row_name)
        else:
            self._loop.call_soon_threadsafe(self._start, fetch, address)
        return fetch

    def stat(self, row_name: str, is_url_based: bool, folder: str | Path) -> ObjectInfo:
        """Metadata of the image of a row in its store.

        Raises:
            SourceError: the store does not have it, or it is a local file.
        """
        address = self._address(row_name, is_url_based, folder)
        if isinstance(address, Path):
            raise SourceError(f"{row_name}: a local file, which has no metadata of a store.")
        return address.source.stat(address.name)

    def open_video(self, row_name: str, is_url_based: bool, folder: str | Path) -> Path | RangedFile:
        """The video of a row: a local file, or a file that is read from the store in blocks.

        Raises:
            SourceError: the store cannot be read.
            ImageError: there is no such local file.
        """
        address = self._address(row_name, is_url_based, folder)
        if isinstance(address, Path):
            return find_image(address, row_name)
        return RangedFile(address.source, address.name, self.cache)

    def want(self, fetch: Fetch) -> None:
        """Serve `fetch` first, because a thread waits for it."""
        self._loop.call_soon_threadsafe(self.ahead.want, fetch)

    def release(self, fetch: Fetch) -> None:
        """Free the memory of `fetch`, whose content was taken or is no longer needed."""
        self._loop.call_soon_threadsafe(self.ahead.release, fetch)

    def close(self) -> None:
        """Cancel all downloads."""
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
        self._disk.shutdown(cancel_futures=True)
        if self.cache:
            self.cache.close()

    async def _stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _address(self, name: str, is_url_based: bool, folder: str | Path) -> _Address | Path:
        """The address of an image in a store, or the local folder that has it."""
        if not is_url_based:
            if not scheme_of(str(folder)):
                return Path(folder)
            source = self._source(str(folder), is_given=True)
            return source.path if isinstance(source, Folder) else _Address(source, name)
        if scheme_of(name) not in ROW_SCHEMES:
            known = ", ".join(f"{scheme}://" for scheme in ROW_SCHEMES)
            raise SourceError(f"{shown(name):.200}: the URL of an image must begin with one of {known}.")
        scheme, _, rest = name.partition("://")
        host, _, path = rest.partition("/")
        source = self._source(f"{scheme}://{host}", is_given=False)
        assert isinstance(source, Remote)
        return _Address(source, path.partition("#")[0] if scheme.lower().startswith("http") else path)

    def _source(self, url: str, *, is_given: bool) -> Remote | Folder:
        """The store at `url`, which is from the user (`is_given`) or from a row."""
        with self._lock:
            if (url, is_given) not in self._sources:
                opened = open_source if is_given else open_named
                source = opened(url, self.storage, self._on_state)
                assert isinstance(source, Remote | Folder)
                self._sources[url, is_given] = source
            return self._sources[url, is_given]

    def _start(self, fetch: Fetch, address: _Address) -> None:
        task = self._loop.create_task(self._download(fetch, address))
        self._tasks.add(task)
        task.add_done_callback(lambda task: self._hand_over(fetch, task))

    def _hand_over(self, fetch: Fetch, task: asyncio.Task[bytes | Path]) -> None:
        """Copy the result, error or cancellation of `task` to `fetch`, so that its waiters always wake."""
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

    async def _download(self, fetch: Fetch, address: _Address) -> bytes:
        await self.ahead.reserve(fetch)
        if fetch.cancelled():
            return b""
        cached = await self._find(address)
        if cached and cached.compared_ns > self._started_ns:
            await self.ahead.reserve(fetch, cached.size)
            content = await self._read_cached(address, cached)
            if content is not None:
                return content
            cached = None
        while True:
            try:
                breaker = address.source.breaker
                return await breaker.with_retries(lambda: self._request(fetch, address, cached), address.name)
            except _DoesNotFit as error:
                # After the request, because a fetch that waits for memory must not hold a connection.
                await self.ahead.reserve(fetch, error.size)

    async def _request(self, fetch: Fetch, address: _Address, cached: CachedFile | None) -> bytes:
        """The content by one request, from the disk if the store's is still that of `cached`."""
        response = await address.source.request(Request(address.name, etag=cached.etag if cached else None))
        size = cached.size if response.is_unchanged and cached else response.size or 0
        if size > MAX_BYTES:
            response.drop()
            raise SourceError(
                f"{address}: {size // 2**20} MiB, larger than the maximum of {MAX_BYTES // 2**20}."
            )
        if not self.ahead.fits(fetch, size):
            response.drop()
            raise _DoesNotFit(size)
        if response.is_unchanged and cached:
            response.drop()
            content = await self._read_cached(address, cached, was_compared=True)
            return await self._request(fetch, address, None) if content is None else content
        content = await response.body()
        self.ahead.learn(len(content))
        self.ahead.force(fetch, len(content))
        await self._add(address, response.etag, content)
        return content

    async def _find(self, address: _Address) -> CachedFile | None:
        cache = self.cache
        return await self._on_disk(lambda: cache.find(str(address))) if cache else None

    async def _read_cached(
        self, address: _Address, cached: CachedFile, *, was_compared: bool = False
    ) -> bytes | None:
        cache = self.cache
        assert cache
        return await self._on_disk(lambda: cache.read(str(address), cached, was_compared=was_compared))

    async def _add(self, address: _Address, etag: str | None, content: bytes) -> None:
        cache = self.cache
        if cache and etag:
            await self._on_disk(lambda: cache.add(str(address), etag, content))

    async def _on_disk(self, work: Callable[[], T]) -> T:
        return await self._loop.run_in_executor(self._disk, work)


def _find_local(fetch: Fetch, folder: Path, name: str) -> None:
    if not fetch.set_running_or_notify_cancel():
        return
    try:
        fetch.set_result(find_image(folder, name))
    except ImageError as error:
        fetch.set_exception(error)
