"""Retries with backoff and jitter, for one transfer and for all requests to a store that may be down."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from flowloom.errors import Denied, NotFound, SourceError, StoreDenied, StoreDown, Unavailable
from flowloom.storage.base import OnState, StorageSection, StoreState

T = TypeVar("T")
FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 5.0
LONGEST_PROBE_PAUSE_S = 15.0


def with_retries(
    attempt: Callable[[], T],
    waits_s: Sequence[float],
    pause: Callable[[float], bool],
    progress: Callable[[], int] = lambda: 0,
) -> T:
    """The result of `attempt`, retried after Unavailable with the pauses `waits_s`, about 30 % up or down.

    Args:
        pause: waits for so many seconds; returns False to stop retrying.
        progress: the pauses begin again with the first one when its value has grown.

    Raises:
        Unavailable: the last error.
    """
    failures = 0
    while True:
        before = progress()
        try:
            return attempt()
        except Unavailable as error:
            failures = 1 if progress() > before else failures + 1
            if failures > len(waits_s):
                raise
            if not pause(max(waits_s[failures - 1] * random.uniform(0.7, 1.3), error.retry_after_s)):
                raise


@dataclass
class CircuitBreaker:
    """Sends all requests to one store. Used only on the event loop of the stores.

    After `tries` failures of a request, the store is pinged. If it responds, the request is tried as often
    again, because the store may have just come back; then the error concerns this object and is raised. If
    the store does not respond, all requests wait while one at a time pings it, and continue when it is back.

    A denial may concern one object or the keys. An object that was read before is requested again: if that is
    denied too, all requests wait in the same way. The keys are read again for each ping.
    """

    store: str
    """Name of the store in messages."""
    storage: StorageSection
    on_state: OnState
    ping: Callable[[], Awaitable[None]]
    """A cheap request that raises Unavailable while the store is down."""
    ping_object: Callable[[str], Awaitable[None]]
    """A request for an object ("" for the listing), with keys read again; raises Denied or Unavailable."""
    is_trusted: bool
    """True to wait for it even if it never responded; a host in a list of URLs may no longer exist."""
    is_guarded: bool
    """True if keys apply to the whole store; otherwise each denial concerns one object."""
    slots: asyncio.Semaphore = field(init=False)
    _probe: asyncio.Task[None] | None = None
    _grants_access: bool = False
    """True after a successful read, until it denies all access for too long."""
    _known: str | None = None
    """An object that was read, or the listing if nothing else was."""

    def __post_init__(self) -> None:
        self.slots = asyncio.Semaphore(self.storage.connections)

    async def with_retries(self, attempt: Callable[[], Awaitable[T]], name: str | None = None) -> T:
        """The result of `attempt`, retried after temporary errors; `name` is its object, "" for the listing.

        Raises:
            Unavailable: the error persists although the store responds.
            StoreDown, StoreDenied: the whole store was unavailable for too long.
            SourceError: an error that a retry does not change.
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
                if await self._wait_if_down(fault, is_last):
                    failures = 0
            pause = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(failures - 1, 16))
            await asyncio.sleep(max(pause * random.uniform(0.5, 1.0), fault.retry_after_s))

    async def _once(self, attempt: Callable[[], Awaitable[T]], name: str | None) -> T:
        """The result of `attempt`; updates the state of the store."""
        async with self.slots:
            try:
                result = await attempt()
            except Unavailable:
                raise
            except SourceError as error:
                self.is_trusted = True
                self._grants_access |= isinstance(error, NotFound)
                raise
        self.is_trusted = self._grants_access = True
        if name or self._known is None:
            self._known = name
        return result

    def forget(self, name: str) -> None:
        """`name` was deleted; a store may deny access to an object that does not exist."""
        self._known = None if self._known == name else self._known

    async def _after_denial(self, denied: Denied, name: str | None, denials: int) -> int:
        """Wait until a retry makes sense; the number of denials in a row.

        Raises:
            Denied: only this request is denied.
            StoreDenied: all requests are denied.
        """
        if not self.is_guarded or not denied.said:
            raise denied
        if not self._grants_access:
            if denied.is_about_keys or denials >= self.storage.tries:
                raise StoreDenied(str(denied), said=denied.said) from denied
            # Of many concurrent reads, only the first may be denied.
            await asyncio.sleep(FIRST_PAUSE_S * 2 ** (denials - 1))
            return denials
        known = name if self._known is None and denied.is_about_keys else self._known
        if known is not None and await self._wait_if_denied(known):
            return 0
        # The keys have been read again: raise only if these are denied too.
        if denials > 1 or known is None:
            raise denied
        return denials

    async def _wait_if_denied(self, known: str) -> bool:
        """True if the store denied an object that it gave before, after waiting until it gives it again."""
        ping = partial(self.ping_object, known)
        for _ in range(self.storage.tries):
            if self._probe:
                break
            try:
                await ping()
                break
            except Denied as error:
                self._start_waiting(ping, error)
            except Unavailable:
                await asyncio.sleep(FIRST_PAUSE_S)
        if self._probe is None:
            return False
        await asyncio.shield(self._probe)
        return True

    def _start_waiting(self, ping: Callable[[], Awaitable[None]], fault: SourceError) -> None:
        if self._probe is None:
            self._probe = asyncio.create_task(self._wait_until_back(ping, fault))

    async def _wait_if_down(self, fault: Unavailable, is_last: bool) -> bool:
        """True if the store was down, after waiting until it is back.

        Raises:
            Unavailable: no retry, because the store responds and `is_last`, or it never responded.
            StoreDown: it never responded, and its URL is from the user.
        """
        if not self.is_trusted:
            raise StoreDown(str(fault)) if self.is_guarded else fault
        if self._probe is None:
            try:
                await self.ping()
            except Unavailable as error:
                self._start_waiting(self.ping, error)
        if self._probe:
            await asyncio.shield(self._probe)
            return True
        if is_last:
            raise fault
        return False

    async def _wait_until_back(self, ping: Callable[[], Awaitable[None]], fault: SourceError) -> None:
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
                    await ping()
                except (Unavailable, Denied):
                    continue
                self.on_state(StoreState(self.store, True, reason, time.monotonic() - start, denies))
                return
        finally:
            self._probe = None
        # From now on, reads fail after their attempts until one succeeds.
        raise self._denied_for_long(reason) if denies else self._down_for_long(reason)

    def _denied_for_long(self, reason: str) -> SourceError:
        self._grants_access, self._known = False, None
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
