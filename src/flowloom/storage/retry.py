"""Patience with a store: retries with backoff and jitter, and a circuit breaker while it is down."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from flowloom.errors import Denied, NotFound, SourceError, StoreDenied, StoreDown, Unavailable
from flowloom.storage.base import OnState, StorageSection, StoreState

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

    A denial may concern one object, or the keys. Something that was read before is asked for again: if that
    is denied too, everything waits in the same way until it is not. The keys are read again for each look.
    """

    store: str
    """Its name in messages."""
    storage: StorageSection
    on_state: OnState
    knock: Callable[[], Awaitable[None]]
    """A cheap request that raises Unavailable while the store is down."""
    knock_at: Callable[[str], Awaitable[None]]
    """A request, with keys read again, for something by name, "" for the listing; raises Denied, or
    Unavailable."""
    is_trusted: bool
    """Whether it is waited for though it never answered yet: any host of a list of URLs may be long gone."""
    is_guarded: bool
    """Whether keys or permissions apply to it as a whole. Otherwise each denial concerns one thing."""
    slots: asyncio.Semaphore = field(init=False)
    _probe: asyncio.Task[None] | None = None
    _lets_in: bool = False
    """Whether it gave something, and did not deny everything for too long since."""
    _known: str | None = None
    """Something that it gave, the listing where that is all it gave."""

    def __post_init__(self) -> None:
        self.slots = asyncio.Semaphore(self.storage.connections)

    async def patiently(self, attempt: Callable[[], Awaitable[T]], name: str | None = None) -> T:
        """What `attempt` gives, tried again after passing faults; `name` is what it reads or writes,
        "" for the listing.

        Raises:
            Unavailable: the fault stays while the store is there.
            StoreDown, StoreDenied: the store as a whole gave nothing, for too long.
            SourceError: the store gave an answer that another try does not change.
        """
        until = time.monotonic() + 60 * self.storage.patience_minutes
        failures = denials = 0
        while True:
            if self._probe:
                await asyncio.shield(self._probe)
            try:
                return await self._once(attempt, name)
            except Unavailable as error:
                fault = error
            except Denied as error:
                denials = await self._after_denial(error, name, denials + 1)
                continue
            failures += 1
            if failures % self.storage.tries == 0:
                is_last = failures >= 2 * self.storage.tries and (
                    not fault.is_busy or time.monotonic() > until
                )
                if await self._was_down(fault, is_last):
                    failures = 0
            pause = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(failures - 1, 16))
            await asyncio.sleep(max(pause * random.uniform(0.5, 1.0), fault.retry_after_s))

    async def _once(self, attempt: Callable[[], Awaitable[T]], name: str | None) -> T:
        """What `attempt` gives; what its answer says of the store is noted."""
        async with self.slots:
            try:
                result = await attempt()
            except Unavailable:
                raise
            except SourceError as error:
                self.is_trusted = True
                self._lets_in |= isinstance(error, NotFound)
                raise
        self.is_trusted = self._lets_in = True
        if name or self._known is None:
            self._known = name
        return result

    def forget(self, name: str) -> None:
        """`name` was deleted: of what is not there, a store may not say so."""
        self._known = None if self._known == name else self._known

    async def _after_denial(self, denied: Denied, name: str | None, denials: int) -> int:
        """Returns when another try makes sense, with how many denials in a row count so far.

        Raises:
            Denied: this one request is denied, others are not.
            StoreDenied: all are.
        """
        if not self.is_guarded or not denied.said:
            raise denied
        if not self._lets_in:
            if denied.is_about_keys or denials >= self.storage.tries:
                raise StoreDenied(str(denied), said=denied.said) from denied
            # Of many that are read at a time, the first one may be the only one that is denied.
            await asyncio.sleep(FIRST_PAUSE_S * 2 ** (denials - 1))
            return denials
        known = name if self._known is None and denied.is_about_keys else self._known
        if known is not None and await self._denied_all(known):
            return 0
        # The keys have been read again: only what is denied with these, too, is denied.
        if denials > 1 or known is None:
            raise denied
        return denials

    async def _denied_all(self, known: str) -> bool:
        """Whether the store denied what it gave before; returns when it gives that again."""
        knock = partial(self.knock_at, known)
        for _ in range(self.storage.tries):
            if self._probe:
                break
            try:
                await knock()
                break
            except Denied as error:
                self._begin_to_wait(knock, error)
            except Unavailable:
                await asyncio.sleep(FIRST_PAUSE_S)
        if self._probe is None:
            return False
        await asyncio.shield(self._probe)
        return True

    def _begin_to_wait(self, knock: Callable[[], Awaitable[None]], fault: SourceError) -> None:
        if self._probe is None:
            self._probe = asyncio.create_task(self._wait_until_back(knock, fault))

    async def _was_down(self, fault: Unavailable, is_last: bool) -> bool:
        """Whether the store is to blame; returns when it is there.

        Raises:
            Unavailable: another try makes no sense, as the store is there and `is_last`, or never answered.
            StoreDown: the same of a store that never answered and that the user gave.
        """
        if not self.is_trusted:
            raise StoreDown(str(fault)) if self.is_guarded else fault
        if self._probe is None:
            try:
                await self.knock()
            except Unavailable as error:
                self._begin_to_wait(self.knock, error)
        if self._probe:
            await asyncio.shield(self._probe)
            return True
        if is_last:
            raise fault
        return False

    async def _wait_until_back(self, knock: Callable[[], Awaitable[None]], fault: SourceError) -> None:
        start = time.monotonic()
        patience_s = 60 * self.storage.patience_minutes
        denies = isinstance(fault, Denied)
        reason = (fault.said if isinstance(fault, Denied) else "") or str(fault)
        if patience_s:
            self.on_state(StoreState(self.store, False, reason, 0.0, denies))
        pause = FIRST_PAUSE_S
        try:
            while time.monotonic() - start < patience_s:
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))
                pause = min(LONGEST_PROBE_PAUSE_S, 2 * pause)
                try:
                    await knock()
                except (Unavailable, Denied):
                    continue
                self.on_state(StoreState(self.store, True, reason, time.monotonic() - start, denies))
                return
        finally:
            self._probe = None
        # From now on reads fail after their tries, until one succeeds.
        raise self._denied_for_long(reason) if denies else self._down_for_long(reason)

    def _denied_for_long(self, reason: str) -> SourceError:
        self._lets_in, self._known = False, None
        minutes = self.storage.patience_minutes
        waited = f" for {minutes:g} minutes" if minutes else ""
        return StoreDenied(
            f"{self.store}: access denied{waited} ({reason}). Renew the keys or restore their permissions, "
            "then resume; storage.patience_minutes sets how long to wait.",
            said=reason,
        )

    def _down_for_long(self, reason: str) -> SourceError:
        self.is_trusted = False
        minutes = self.storage.patience_minutes
        message = (
            f"{self.store}: down for {minutes:g} minutes ({reason}). Check the store and the network, then "
            "resume; storage.patience_minutes sets how long to wait."
        )
        return StoreDown(message) if self.is_guarded else Unavailable(message)
