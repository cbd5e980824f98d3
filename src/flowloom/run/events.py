"""Events of a run: `events.jsonl` in its directory, one JSON object per line, append-only.

Every event has `seq` (0, 1, 2, ... without gaps), `time` (seconds since 1970) and `kind`; the kinds and their
fields are the classes below. A resumed run continues in the same file: `resumed_from` of its `started` event
is the step (null: the beginning), and earlier events beyond that step no longer count (`without_repeats`
removes them). Readers skip damaged lines and count them.
"""

from __future__ import annotations

import errno
import json
import math
import mmap
import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_type_hints

from pydantic import Field
from typing_extensions import TypedDict

from flowloom.config.secrets import redact
from flowloom.errors import disk_full, is_disk_full
from flowloom.json_types import is_object, is_sequence
from flowloom.loggers.metrics import MetricFields

Event = dict[str, Any]


class Header(TypedDict):
    """Fields of every event."""

    seq: int
    time: float


class Started(Header):
    """The process starts, for the first time or after `flowloom resume`."""

    kind: Literal["started"]
    versions: dict[str, str]
    device: str
    method: str
    trained_params: int | None
    """Null for other trainers, like all numbers that they do not report."""
    total_params: int | None
    resumed_from: int | None
    """Step of the checkpoint that it resumes from; null at the first start."""


class Phase(Header):
    """A phase begins: loading, training, ..."""

    kind: Literal["phase"]
    name: str


class Step(Header, MetricFields):
    """An optimizer update was made."""

    kind: Literal["step"]
    step: int
    epoch: int | None
    batch: int | None
    eta_s: float | None
    loss_by_noise_level: list[float | None]
    """Mean loss in each eighth of [0, 1]; null without a sample in it."""


class Progressed(Header):
    """Progress of a task (a download, tagging ...); `step` counts items or bytes.

    For other trainers: the values of their progress bar, with the epoch if it counts them.
    """

    kind: Literal["progress"]
    step: int
    epoch: int | None
    max_steps: int | None
    samples_per_s: float | None
    eta_s: float | None


class Validated(Header):
    """The loss on held-out rows was measured."""

    kind: Literal["validated"]
    step: int
    weights: Literal["raw", "ema"]
    loss: float
    by_quantile: dict[str, float]


class Sampled(Header):
    """Previews were written to `dir`, relative to the run directory."""

    kind: Literal["sampled"]
    step: int
    dir: str


class Saved(Header):
    """A checkpoint was saved to `dir`, relative to the run directory."""

    kind: Literal["saved"]
    step: int
    dir: str


class Removed(Header):
    """A checkpoint was deleted according to the `checkpoint` settings; `reason` says why."""

    kind: Literal["removed"]
    step: int
    dir: str
    reason: str


class Uploaded(Header):
    """A checkpoint was uploaded to the hub or to the mirror, at `url`."""

    kind: Literal["uploaded"]
    step: int
    url: str


class Skipped(Header):
    """A row could not be used."""

    kind: Literal["skipped"]
    file: str
    line: int
    reason: str


class Hint(TypedDict, total=False):
    """Optional field of events."""

    hint: str
    """What to do about it."""


class Warned(Header, Hint):
    """A problem that does not end the run; an optional `hint` says what to do."""

    kind: Literal["warning"]
    message: str


class Failed(Header):
    """The run ended with an error."""

    kind: Literal["failed"]
    error: str
    message: str
    hint: str


class Finished(Header):
    """The run reached its limit."""

    kind: Literal["finished"]
    step: int


class Stopped(Header):
    """The run stopped on request."""

    kind: Literal["stopped"]
    step: int


RunEvent = Annotated[
    Started
    | Phase
    | Step
    | Progressed
    | Validated
    | Sampled
    | Saved
    | Removed
    | Uploaded
    | Skipped
    | Warned
    | Failed
    | Finished
    | Stopped,
    Field(discriminator="kind"),
]
"""An event of any kind: the type of each line of events.jsonl, for the API's schema."""
_KINDS: dict[str, Any] = {
    get_args(get_type_hints(event)["kind"])[0]: event for event in get_args(get_args(RunEvent)[0])
}
_HEADER = frozenset(Header.__annotations__) | {"kind"}
OPTIONAL = {kind: frozenset(event.__optional_keys__) for kind, event in _KINDS.items()}
"""Optional fields of each kind."""
FIELDS = {kind: frozenset(get_type_hints(event)) - _HEADER - OPTIONAL[kind] for kind, event in _KINDS.items()}
"""Required fields of each kind, besides `seq`, `time` and `kind`."""


class EventWriter:
    """Appends events to a file, each in one write; `secrets` never reach it."""

    def __init__(self, path: Path, secrets: Collection[str] = ()):
        self.path = path
        self._secrets = secrets
        self._file = path.open("ab", buffering=0)
        self._end, self._seq = _whole_part(path)
        # A partial line left by a crash would damage the next one.
        self._file.truncate(self._end)

    def write(self, kind: str, **fields: Any) -> Event:
        """Append an event and return it; NaN and infinite numbers become null.

        Raises:
            ValueError: the kind is unknown, or its fields are wrong.
            DiskFullError: it could not be written; the file still has complete lines only.
        """
        if kind not in FIELDS or FIELDS[kind] != frozenset(fields) - OPTIONAL[kind]:
            raise ValueError(f"no event {kind!r} with the fields {sorted(fields)}; see run/events.py.")
        event = {"seq": self._seq, "time": round(time.time(), 3), "kind": kind, **_finite(fields)}
        line = redact(json.dumps(event, ensure_ascii=False, allow_nan=False), self._secrets)
        self._append(f"{line}\n".encode())
        self._seq += 1
        return event

    def _append(self, line: bytes) -> None:
        try:
            written = self._file.write(line)
            if written != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            self._file.truncate(self._end)
            if not is_disk_full(error):
                raise
            raise disk_full(self.path, error) from error
        self._end += len(line)

    def close(self) -> None:
        """Flush to the disk and close."""
        try:
            if not self._file.closed:
                os.fsync(self._file.fileno())
        finally:
            self._file.close()


def read_events(
    path: Path, from_seq: int = 0, on_damage: Callable[[int], None] = lambda _line: None
) -> Iterator[Event]:
    """The events from `from_seq` on; an incomplete last line is skipped.

    `on_damage` is called with the number, from 1, of each damaged line; the events after it still count.
    """
    if not path.exists():
        return
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.endswith(b"\n"):
                return
            event = _parse(line)
            if event is None:
                on_damage(number)
            elif event["seq"] >= from_seq:
                yield event


def last_kept_step(started: Event) -> int:
    """The step up to which events before this `started` count; 0 if the attempt was abandoned."""
    resumed_from = started.get("resumed_from")
    return resumed_from if isinstance(resumed_from, int) else 0


def without_repeats(events: Iterable[Event]) -> list[Event]:
    """The history as if the run had never been interrupted.

    A run that was killed at step 130 and resumed from its checkpoint at 100 made steps 101 to 130 twice:
    events before a `started` and beyond its `resumed_from` are removed. If that is null, because the run was
    killed before its first checkpoint, all earlier steps are removed.
    """
    history: list[Event] = []
    for event in events:
        if event["kind"] == "started":
            kept = last_kept_step(event)
            history = [past for past in history if (past.get("step") or 0) <= kept]
        history.append(event)
    return history


def _whole_part(path: Path) -> tuple[int, int]:
    """End of the last complete line of `path`, and the number of the next event."""
    if path.stat().st_size == 0:
        return 0, 0
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        end = data.rfind(b"\n") + 1
        while end:
            start = data.rfind(b"\n", 0, end - 1) + 1
            event = _parse(data[start:end])
            if event is not None:
                return end, event["seq"] + 1
            end = start
    return 0, 0


def _parse(line: bytes) -> Event | None:
    if not line.endswith(b"\n"):
        return None
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    is_event = is_object(event) and isinstance(event.get("seq"), int)
    return event if is_event and isinstance(event.get("kind"), str) else None


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if is_object(value):
        return {str(key): _finite(item) for key, item in value.items()}
    if is_sequence(value):
        return [_finite(item) for item in value]
    return value
