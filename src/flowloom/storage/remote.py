"""What all stores over the network have in common: one event loop, patience, plain methods."""

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
from flowloom.storage.base import Entry, OnState, StorageSection
from flowloom.storage.retry import Gate

T = TypeVar("T")
PAGE = 1000
"""Names asked for at a time in a listing."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The head of a store's answer; its body is still to be read."""

    size: int | None
    """Bytes; null where the store does not say."""
    etag: str | None
    body: Callable[[], Awaitable[bytes]]
    drop: Callable[[], None]
    """Leave the body unread."""
    is_unchanged: bool = False
    """Whether the content is still that of the given etag; then there is no body."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked of a store."""

    name: str
    start: int | None = None
    length: int | None = None
    etag: str | None = None
    """Ask for the content only if it is another than this."""


class Remote:
    """A `Source` over the network. A store's own file gives the five methods with an underscore."""

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
        self.gate = Gate(self.root, storage, on_state, self._knock, self._knock_at, is_trusted, is_guarded)

    async def ask(self, wanted: Wanted) -> Answer:
        """One request, not tried again: for use within `gate.patiently`."""
        raise NotImplementedError

    async def _knock(self) -> None:
        """Return if the store is there, whatever it answers; else raise Unavailable."""
        raise NotImplementedError

    async def _knock_at(self, name: str) -> None:
        """Return if the store gives `name`, with keys read again; else raise Denied or Unavailable."""
        self._renew_keys()
        try:
            await (self._body(Wanted(name, 0, 1)) if name else self._knock_at_listing())
        except (Denied, Unavailable):
            raise
        except SourceError:
            return  # such as NotFound: an answer for those who are let in

    async def _knock_at_listing(self) -> None:
        """Return if the store can be listed, or what a web server has in place of a listing can be read."""
        await self._body(Wanted("", 0, 1))

    def _renew_keys(self) -> None:
        """Read the keys again, where others may have renewed them."""

    def _pages(self, prefix: str, after: str | None) -> AsyncIterator[list[Entry]]:  # noqa: ARG002
        raise SourceError(f"{self.root}/{prefix}: this kind of store cannot be listed.")

    async def _put(self, name: str, content: bytes | Path) -> None:  # noqa: ARG002
        raise SourceError(f"{self.root}/{name}: this kind of store cannot be written to.")

    async def _remove(self, name: str) -> None:
        raise SourceError(f"{self.root}/{name}: nothing can be deleted in this kind of store.")

    def read(self, name: str) -> bytes:
        return self._patiently(lambda: self._body(Wanted(name)), name)

    def read_range(self, name: str, start: int, length: int) -> bytes:
        return self._patiently(lambda: self._body(Wanted(name, start, length)), name) if length else b""

    def read_buffer(self, name: str, start: int, length: int) -> Buffer:
        return self.read_range(name, start, length)

    def look(self, name: str) -> Entry:
        return self._patiently(lambda: self._look(name), name)

    def list(self, prefix: str = "") -> Iterator[Entry]:
        pages: AsyncIterator[list[Entry]] | None = None
        after: str | None = None

        async def turn() -> list[Entry] | None:
            nonlocal pages
            pages = pages or self._pages(prefix, after)
            try:
                return await anext(pages, None)
            except SourceError:
                pages = None  # a listing that broke off is taken up after the last name
                raise

        while (page := self._patiently(turn, "")) is not None:
            yield from page
            after = page[-1].name if page else after

    def write(self, name: str, content: bytes | Path) -> None:
        if isinstance(content, Path) and not content.is_file():
            raise SourceError(f"{content}: no such file to write to {self.root}/{name}.")
        self._patiently(lambda: self._put(name, content), name)

    def delete(self, name: str) -> None:
        try:
            self._patiently(lambda: self._remove(name), name)
        except NotFound:
            return
        finally:
            self.gate.forget(name)

    async def _look(self, name: str) -> Entry:
        answer = await self.ask(Wanted(name))
        answer.drop()
        if answer.size is None:
            raise SourceError(f"{self.root}/{name}: the server does not say its size.")
        return Entry(name, answer.size, answer.etag, None)

    async def _body(self, wanted: Wanted) -> bytes:
        return await (await self.ask(wanted)).body()

    def _patiently(self, attempt: Callable[[], Awaitable[T]], name: str | None = None) -> T:
        return run(self.gate.patiently(attempt, name))


class _Loops:
    """The one event loop of this process, in a thread of its own."""

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
    """Where all stores are talked to."""
    return _loops.get()


def run(work: Coroutine[Any, Any, T]) -> T:
    """Do `work` on the event loop and wait for it; not to be called from there."""
    future = asyncio.run_coroutine_threadsafe(work, event_loop())
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise
