"""Charts of a run: its step events as columns in memory, read incrementally and down-sampled."""

from __future__ import annotations

import math
import threading
from array import array
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, Field, ValidationError
from typing_extensions import TypedDict

from flowloom.files import open_plain
from flowloom.loggers.metrics import METRICS
from flowloom.run.events import last_kept_step
from flowloom.server.runs.tail import EventTail, is_number

_KEPT_RUNS = 8
_LONGEST = 4096


class Series(BaseModel):
    """One curve: mean, minimum and maximum for each interval of steps; null if it has no values."""

    mean: list[float | None]
    low: list[float | None]
    high: list[float | None]


if TYPE_CHECKING:
    MetricSeries = dict[str, Series]
else:
    MetricSeries = TypedDict("MetricSeries", dict.fromkeys(METRICS, Series))


class Mark(BaseModel):
    """A validation, sample or checkpoint at a step."""

    kind: str
    step: int
    loss: float | None = None
    weights: Literal["raw", "ema"] | None = Field(None, description="The weights of a validation.")


class Metrics(BaseModel):
    """A run's charts."""

    num_steps: int
    last_seq: int = Field(description="Send this to /events as Last-Event-ID to miss nothing.")
    steps: list[int] = Field(description="The last step of each interval.", examples=[[100, 200, 300]])
    series: MetricSeries
    marks: list[Mark] = Field(description="Validations, samples, checkpoints.")
    damaged_lines: int = Field(0, description="Unreadable lines of events.jsonl, which were skipped.")


class Columns:
    """The step events of one run, without those that a resumed run repeated."""

    def __init__(self, path: Path):
        self._tail = EventTail(path)
        self._lock = threading.Lock()
        self._columns = {name: array("f") for name in METRICS}
        self._steps = array("q")
        self._marks: list[Mark] = []

    def chart(self, max_points: int, first: int = 0, last: int | None = None) -> Metrics:
        """Steps `first` to `last` (default: the newest) in at most `max_points` intervals."""
        import numpy as np

        with self._lock:
            while found := self._tail.read():
                for each in found:
                    self._take(each.event)
            begin = bisect_left(self._steps, first)
            num = max(0, (len(self._steps) if last is None else bisect_right(self._steps, last)) - begin)
            points = min(num, max_points)
            edges = begin + np.arange(points + 1) * num // max(points, 1)
            return Metrics(
                num_steps=len(self._steps),
                last_seq=self._tail.seq,
                steps=[self._steps[end - 1] for end in edges[1:]],
                series={name: _series(column, edges) for name, column in self._columns.items()},
                marks=self._marks[-max_points:],
                damaged_lines=len(self._tail.damaged),
            )

    def _take(self, event: dict[str, Any]) -> None:
        kind = event["kind"]
        step = event.get("step")
        if kind == "step" and is_number(step, whole=True):
            self._steps.append(int(step))
            for name, column in self._columns.items():
                value = event.get(name)
                column.append(value if is_number(value) else math.nan)
        elif kind == "started":
            self._cut(last_kept_step(event))
        elif kind in ("validated", "sampled", "saved"):
            found: dict[str, Any] = {key: event.get(key) for key in ("loss", "weights")}
            with suppress(ValidationError):  # a line that we did not write
                self._marks.append(Mark(kind=kind, step=0 if step is None else step, **found))

    def _cut(self, step: int) -> None:
        """Drop everything after `step`, which the run is about to repeat."""
        end = bisect_right(self._steps, step)
        for column in (self._steps, *self._columns.values()):
            del column[end:]
        self._marks = [mark for mark in self._marks if mark.step <= step]


def _series(column: array[float], edges: Any) -> Series:
    import numpy as np

    if len(edges) < 2:
        return Series(mean=[], low=[], high=[])
    values, starts = np.frombuffer(column, np.float32)[: edges[-1]], edges[:-1]
    known = np.isfinite(values)
    counts = np.add.reduceat(known, starts, dtype=np.int64)
    sums = np.add.reduceat(np.where(known, values, 0), starts, dtype=np.float64)
    low = np.minimum.reduceat(np.where(known, values, np.inf), starts)
    high = np.maximum.reduceat(np.where(known, values, -np.inf), starts)
    return Series(
        mean=[
            total / count if count else None
            for total, count in zip(sums.tolist(), counts.tolist(), strict=True)
        ],
        low=_known(low.tolist(), counts),
        high=_known(high.tolist(), counts),
    )


def _known(values: list[float], counts: Any) -> list[float | None]:
    return [value if count else None for value, count in zip(values, counts.tolist(), strict=True)]


def _beginning(path: Path) -> bytes:
    """The first line, which identifies the run by its start time."""
    try:
        with open_plain(path) as file:
            return file.readline(_LONGEST)
    except FileNotFoundError:
        return b""


class Charts:
    """Columns of the most recently requested runs."""

    def __init__(self) -> None:
        self._columns: OrderedDict[tuple[Path, bytes], Columns] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, path: Path) -> Columns:
        """The columns of the events at `path`. A new run with the same name has new ones."""
        key = path, _beginning(path)
        with self._lock:
            columns = self._columns.pop(key, None) or Columns(path)
            self._columns[key] = columns
            while len(self._columns) > _KEPT_RUNS:
                self._columns.popitem(last=False)
            return columns
