"""Common base of stores on the network: one event loop, retries, synchronous methods."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from typing_extensions import Buffer

from flowloom.errors import Denied, NotFound, SourceError, Unavailable
from flowloom.storage.base import ObjectInfo, OnState, StorageSection
from flowloom.storage.retry import CircuitBreaker

T = TypeVar("T")
PAGE = 1000
"""Names per page of a listing."""


@dataclass(frozen=True, slots=True)
class Response:
    """The headers of a response; its body is not read yet."""

    size: int | None
    """Bytes; None if the store does not say."""
    etag: str | None
    body: Callable[[], Awaitable[bytes]]
    drop: Callable[[], None]
    """Discard the body."""
    is_unchanged: bool = False
    """True if the content still has the given etag; then there is no body."""


@dataclass(frozen=True, slots=True)
class Request:
    """A read of an object or a part of it."""

    name: str
    start: int | None = None
    length: int | None = None
    etag: str | None = None
    """Return the content only if it has another etag."""


class Remote:
    """A `Source` on the network. Subclasses implement the methods with an underscore."""

    def __init__(
        self,
        root: str,
        storage: StorageSection,
        on_state: OnState,
        *,
        is_trusted: bool,
        is_guarded: bool = True,
    ):
        self.root = root.rstrip("/")
        self.storage = storage
        self.breaker = CircuitBreaker(
            self.root, storage, on_state, self._ping, self._ping_object, is_trusted, is_guarded
        )

    async def request(self, wanted: Request) -> Response:
        """Send one request without retries, for use in `breaker.with_retries`."""
        raise NotImplementedError

    async def _ping(self) -> None:
        """Return if the store responds in any way; otherwise raise Unavailable."""
        raise NotImplementedError

    async def _ping_object(self, name: str) -> None:
        """Return if the store gives `name`, with keys read again; otherwise raise Denied or Unavailable."""
        self._renew_keys()
        try:
            await (self._body(Request(name, 0, 1)) if name else self._ping_listing())
        except (Denied, Unavailable):
            raise
        except SourceError:
            return  # such as NotFound, which needs access

    async def _ping_listing(self) -> None:
        """Return if the store can be listed, or for a web server its root can be read."""
        await self._body(Request("", 0, 1))

    def _renew_keys(self) -> None:
        """Read the keys again, as they may have been renewed."""

    def _pages(self, prefix: str, after: str | None) -> AsyncIterator[list[ObjectInfo]]:  # noqa: ARG002
        raise SourceError(f"{self.root}/{prefix}: this kind of store cannot be listed.")

    async def _put(self, name: str, content: bytes | Path) -> None:  # noqa: ARG002
        raise SourceError(f"{self.root}/{name}: this kind of store cannot be written to.")

    async def _remove(self, name: str) -> None:
        raise SourceError(f"{self.root}/{name}: nothing can be deleted in this kind of store.")

    def read(self, name: str) -> bytes:
        return self._with_retries(lambda: self._body(Request(name)), name)

    def read_range(self, name: str, start: int, length: int) -> bytes:
        return self._with_retries(lambda: self._body(Request(name, start, length)), name) if length else b""

    def read_buffer(self, name: str, start: int, length: int) -> Buffer:
        return self.read_range(name, start, length)

    def stat(self, name: str) -> ObjectInfo:
        return self._with_retries(lambda: self._stat(name), name)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        pages: AsyncIterator[list[ObjectInfo]] | None = None
        after: str | None = None

        async def next_page() -> list[ObjectInfo] | None:
            nonlocal pages
            pages = pages or self._pages(prefix, after)
            try:
                return await anext(pages, None)
            except SourceError:
                pages = None  # resume an interrupted listing after the last name
                raise

        while (page := self._with_retries(next_page, "")) is not None:
            yield from page
            after = page[-1].name if page else after

    def write(self, name: str, content: bytes | Path) -> None:
        if isinstance(content, Path) and not content.is_file():
            raise SourceError(f"{content}: no such file to write to {self.root}/{name}.")
        self._with_retries(lambda: self._put(name, content), name)

    def delete(self, name: str) -> None:
        try:
            self._with_retries(lambda: self._remove(name), name)
        except NotFound:
            return
        finally:
            self.breaker.forget(name)

    async def _stat(self, name: str) -> ObjectInfo:
        response = await self.request(Request(name))
        response.drop()
        if response.size is None:
            raise SourceError(f"{self.root}/{name}: the server does not report its size.")
        return ObjectInfo(name, response.size, response.etag, None)

    async def _body(self, wanted: Request) -> bytes:
        return await (await self.request(wanted)).body()

    def _with_retries(self, attempt: Callable[[], Awaitable[T]], name: str | None = None) -> T:
        return run(self.breaker.with_retries(attempt, name))


class _Loops:
    """The event loop of this process, in a separate thread."""

    def __init__(self) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        self.pid = 0
        self.lock = threading.Lock()

    def get(self) -> asyncio.AbstractEventLoop:
        with self.lock:
            if self.loop is None or self.pid != os.getpid():  # a forked child has no threads
                self.loop, self.pid = asyncio.new_event_loop(), os.getpid()
                threading.Thread(target=self.loop.run_forever, name="sources", daemon=True).start()
            return self.loop


_loops = _Loops()


def event_loop() -> asyncio.AbstractEventLoop:
    """The event loop of all stores in this process."""
    return _loops.get()


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` on the event loop and wait for it; must not be called from the loop."""
    future = asyncio.run_coroutine_threadsafe(work, event_loop())
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise
