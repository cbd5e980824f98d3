"""Patience with a store: retries with backoff and jitter, and a circuit breaker while it is down."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

from flowloom.errors import SourceError, Unavailable
from flowloom.parts.sources.base import OnState, StorageSection, StoreState

T = TypeVar("T")
FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 5.0
LONGEST_PROBE_PAUSE_S = 15.0


@dataclass
class Gate:
    """All requests to one store pass here. Used on the sources' event loop only.

    A request that fails `tries` times asks whether the store is there at all. If it is, the request is tried
    as often again, since the store may have come back just now; then that one thing is at fault, and its
    reader is told so. If it is not, everything waits, one request at a time looks whether it
    is back, and all go on where they were.
    """

    store: str
    """Its name in messages."""
    storage: StorageSection
    on_state: OnState
    knock: Callable[[], Awaitable[None]]
    """A cheap request that raises Unavailable while the store is down."""
    is_trusted: bool
    """Whether it is waited for though it never answered yet: any host of a list of URLs may be long gone."""
    slots: asyncio.Semaphore = field(init=False)
    _probe: asyncio.Task[None] | None = None

    def __post_init__(self) -> None:
        self.slots = asyncio.Semaphore(self.storage.connections)

    async def patiently(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """What `attempt` gives, tried again after passing faults.

        Raises:
            Unavailable: the fault stays while the store is there, or the store was down for too long.
            SourceError: the store gave an answer that another try does not change.
        """
        until = time.monotonic() + 60 * self.storage.patience_minutes
        failures = 0
        while True:
            if self._probe:
                await asyncio.shield(self._probe)
            try:
                async with self.slots:
                    result = await attempt()
            except Unavailable as error:
                fault = error
            except SourceError:
                self.is_trusted = True
                raise
            else:
                self.is_trusted = True
                return result
            failures += 1
            if failures % self.storage.tries == 0:
                is_last = failures >= 2 * self.storage.tries and (
                    not fault.is_busy or time.monotonic() > until
                )
                if await self._was_down(fault, is_last):
                    failures = 0
            pause = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(failures - 1, 16))
            await asyncio.sleep(max(pause * random.uniform(0.5, 1.0), fault.retry_after_s))

    async def _was_down(self, fault: Unavailable, is_last: bool) -> bool:
        """Whether the store is to blame; returns when it is there.

        Raises:
            Unavailable: another try makes no sense, as the store never answered, or is there and `is_last`.
        """
        if not self.is_trusted:
            raise fault
        if self._probe is None:
            try:
                await self.knock()
            except Unavailable as error:
                if self._probe is None:
                    self._probe = asyncio.create_task(self._wait_until_back(str(error)))
        if self._probe:
            await asyncio.shield(self._probe)
            return True
        if is_last:
            raise fault
        return False

    async def _wait_until_back(self, reason: str) -> None:
        start = time.monotonic()
        self.on_state(StoreState(self.store, False, reason, 0.0))
        pause = FIRST_PAUSE_S
        try:
            while time.monotonic() - start < 60 * self.storage.patience_minutes:
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))
                pause = min(LONGEST_PROBE_PAUSE_S, 2 * pause)
                try:
                    await self.knock()
                except Unavailable:
                    continue
                self.on_state(StoreState(self.store, True, reason, time.monotonic() - start))
                return
        finally:
            self._probe = None
        self.is_trusted = False  # from now on reads fail after their tries, until one succeeds
        minutes = self.storage.patience_minutes
        raise Unavailable(
            f"{self.store}: down for {minutes:g} minutes ({reason}). Check the store and the network, then "
            "resume; storage.patience_minutes sets how long to wait."
        )
