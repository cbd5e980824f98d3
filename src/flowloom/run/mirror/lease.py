"""The lease of a mirrored run: one machine at a time writes to it.

`lease.json` holds the random name of the run directory that writes, and is renewed while it trains. A
directory that resumes the run from the store takes the lease over if it was released, or not renewed for
`LEASE_S` by the clock of the store. The old directory then finds another owner and writes no more.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime

from flowloom.errors import NotFound, RunError
from flowloom.run.mirror.layout import LEASE, parsed_object
from flowloom.storage.objects import Objects

LEASE_S = 60.0
RENEWED_EVERY_S = 15.0


class LeaseLostError(RunError):
    """Another run directory writes to the mirror."""


@dataclass(frozen=True)
class Holder:
    """The content of `lease.json`."""

    owner: str
    host: str = "another machine"
    is_released: bool = False
    beat: int = 0
    """Counts renewals, so that each changes the etag."""


class Lease:
    """The right of `owner` to write to the mirrored run in `store`."""

    def __init__(self, store: Objects, owner: str):
        self.store, self.owner = store, owner
        self._etag: str | None = None
        self._beat = 0
        self._renewed_at = float("-inf")

    def take(self) -> None:
        """Take a lease that nothing or this run directory holds; it must not have been another's since.

        Raises:
            LeaseLostError: another run directory has it, or had it last.
            SourceError: the store could not be read or written.
        """
        holder, etag, _ = self._read()
        if holder and holder.owner != self.owner:
            raise self._lost(holder)
        self._write(etag, is_released=False)

    def take_over(self, wait: Callable[[str], None]) -> None:
        """Take the lease from another run directory that does not write any more.

        Args:
            wait: called with the reason before a wait until an unreleased lease ends.

        Raises:
            RunError: another machine trains the run.
            SourceError: the store could not be read or written.
        """
        holder, etag, since = self._read()
        if holder and not holder.is_released and holder.owner != self.owner:
            # By the store's clock alone: those of two machines may differ.
            left = LEASE_S - (self._now() - since).total_seconds() if since else LEASE_S
            if left > 0:
                wait(f"{self.store.root}: waiting {left:.0f} s, because {holder.host} may still train it")
                time.sleep(left)
                later, etag, _ = self._read()
                if later and later.beat != holder.beat and not later.is_released:
                    raise RunError(
                        f"{self.store.root}: {later.host} trains this run now. Stop it there, then try "
                        "again; or fork it by a --mirror.url that differs."
                    )
        self._write(etag, is_released=False)

    def renew(self) -> None:
        """Renew the lease if it is due.

        Raises:
            LeaseLostError: another run directory took it.
            SourceError: the store could not be written.
        """
        if time.monotonic() - self._renewed_at < RENEWED_EVERY_S:
            return
        if self._etag is None:
            self.take()
        else:
            self._write(self._etag, is_released=False)

    def release(self) -> None:
        """Allow any machine to resume the run at once.

        Raises:
            LeaseLostError, SourceError: as `renew`.
        """
        if self._etag:
            self._write(self._etag, is_released=True)

    def _write(self, etag: str | None, *, is_released: bool) -> None:
        self._beat += 1
        content = asdict(Holder(self.owner, socket.gethostname(), is_released, self._beat))
        self._etag = self.store.write_if(LEASE, json.dumps(content).encode(), etag)
        if self._etag is None:
            # Written in between, or the response to an earlier attempt of ours was lost.
            holder, etag, _ = self._read()
            if holder is None or holder.owner != self.owner:
                raise self._lost(holder or Holder(""))
            self._etag = etag
        self._renewed_at = time.monotonic()

    def _read(self) -> tuple[Holder | None, str | None, datetime | None]:
        try:
            info = self.store.stat(LEASE)
            content = parsed_object(self.store.read(LEASE), f"{self.store.root}/{LEASE}")
        except NotFound:
            return None, None, None
        known = {name: content[name] for name in asdict(Holder("")) if name in content}
        holder = Holder(**({"owner": ""} | known))  # pyright: ignore[reportArgumentType]
        self._beat = max(self._beat, holder.beat)
        return holder, info.etag, info.modified

    def _now(self) -> datetime:
        """The time of the store, by a new object."""
        name = f"clock/{self.owner}"
        self.store.write(name, b"")
        try:
            modified = self.store.stat(name).modified
        finally:
            self.store.delete(name)
        assert modified is not None, "object stores report times"
        return modified

    def _lost(self, holder: Holder) -> LeaseLostError:
        error = LeaseLostError(f"{self.store.root} belongs to another run directory, on {holder.host}.")
        error.hint = (
            f"Continue that one: 'flowloom resume {self.store.root}'. To keep this one too, give it another "
            "name or mirror.url."
        )
        return error
