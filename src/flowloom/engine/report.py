"""The reporter of a run: events for the run directory, the trackers and the progress line."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any, NamedTuple, Protocol, cast

import torch

from flowloom.engine.position import Position
from flowloom.engine.state import TrainState
from flowloom.engine.step import StepMetrics
from flowloom.engine.trackers import Tracker, close_all
from flowloom.errors import DivergedError
from flowloom.run.events import EventWriter

SMOOTHING = 0.98
STEPS_BETWEEN_READS = 10
"""Steps whose metrics are read together on an accelerator: each reading makes the CPU wait."""

OnEvent = Callable[[dict[str, Any]], None]


class Follower(Protocol):
    """Acts on the events of a run in the background; no failure ends the run."""

    def log(self, event: dict[str, Any]) -> None:
        """An event was written; may emit others."""
        ...

    def close(self) -> None:
        """The run is over; the event file is still open."""
        ...


class Update(NamedTuple):
    """One finished update."""

    metrics: StepMetrics
    step: int
    """Its number, counted from 1."""
    epoch: int
    batch: int
    """The batch that it trained, not the next one."""
    num_samples: int
    """On all ranks."""


class Reporter:
    """The one place that reads metrics off the device."""

    def __init__(self, writer: EventWriter | None, on_event: OnEvent):
        self.writer = writer
        self.trackers: list[Tracker] = []
        self.followers: list[Follower] = []
        """Uploads; those later in the list are closed later."""
        self.on_event = on_event
        self._pending: list[tuple[dict[str, Any], StepMetrics]] = []
        self._step_seconds: float | None = None
        self._lock = threading.RLock()
        self.shield: Callable[[], AbstractContextManager[None]] = nullcontext
        """Entered around each event: a stop must not interrupt it."""

    def emit(self, kind: str, **fields: Any) -> None:
        """Write one event and pass it on; ranks other than the first do nothing."""
        if self.writer is None:
            return
        # Stores report from another thread that they are down, while the engine's waits for them.
        with self.shield(), self._lock:
            event = self.writer.write(kind, **fields)
            self.on_event(event)
            for tracker in self.trackers:
                tracker.log(event)
            for follower in self.followers:
                follower.log(event)

    def step(
        self, state: TrainState, update: Update, seconds: float, waited: float, eta: float | None
    ) -> None:
        """Record one update; `seconds` is its total time, `waited` the part spent waiting for data."""
        smooth = self._step_seconds
        self._step_seconds = seconds if smooth is None else 0.9 * smooth + 0.1 * seconds
        metrics = update.metrics
        fields = {
            "step": update.step,
            "epoch": update.epoch,
            "batch": update.batch,
            "lr": metrics.lr,
            "samples_per_s": update.num_samples / self._step_seconds,
            "step_s": seconds,
            "data_wait_s": waited,
            "eta_s": eta,
        }
        self._pending.append((fields, metrics))
        wait = 1 if metrics.loss.device.type == "cpu" else STEPS_BETWEEN_READS
        if len(self._pending) >= wait:
            self.flush(state.position)

    def flush(self, position: Position) -> None:
        """Write the pending metrics; called before anything is saved.

        Raises:
            DivergedError: a loss or gradient is not finite.
        """
        pending, self._pending = self._pending, []
        for fields, metrics in pending:
            loss, grad_norm = metrics.loss.item(), metrics.grad_norm.item()
            if not (math.isfinite(loss) and math.isfinite(grad_norm)):
                raise DivergedError(fields["step"], f"loss {loss}, gradient norm {grad_norm}")
            before = loss if position.loss_smooth is None else position.loss_smooth
            position.loss_smooth = SMOOTHING * before + (1 - SMOOTHING) * loss
            self.emit(
                "step",
                **fields,
                loss=loss,
                loss_smooth=position.loss_smooth,
                grad_norm=grad_norm,
                peak_memory_mib=peak_memory_mib(metrics.loss.device),
                loss_by_noise_level=_by_noise_level(metrics),
            )

    def close(self) -> None:
        """Close the trackers and the event file."""
        for follower in self.followers:
            follower.close()
        close_all(self.trackers)
        # A full or missing disk must not hide the reason why the run ended.
        with suppress(OSError):
            if self.writer:
                self.writer.close()


def _by_noise_level(metrics: StepMetrics) -> list[float | None]:
    """Mean loss in each eighth of [0, 1]; None for those without a sample."""
    sums, counts = cast("list[list[float]]", metrics.by_noise_level.tolist())
    return [total / count if count else None for total, count in zip(sums, counts, strict=True)]


def peak_memory_mib(device: torch.device) -> float:
    """Peak memory so far: the accelerator's, or on a CPU the process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Stopwatch:
    """Seconds since it was last read."""

    def __init__(self) -> None:
        self._last = time.perf_counter()

    def lap(self) -> float:
        """Seconds since the last lap."""
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        return seconds
