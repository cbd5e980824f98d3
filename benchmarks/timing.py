"""The result of a benchmark, and the fair timing of two implementations."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True)
class Measured:
    """One benchmark's result."""

    ratio: float | None
    """Cost of the rival over ours, or the figure that the docstring names; None if not measured here."""
    target: float
    correct: bool
    """True if the results agree; checked before anything is timed."""
    higher_is_better: bool = True
    detail: dict[str, Any] = field(default_factory=dict)

    @property
    def passed(self) -> bool | None:
        """True if the results agree and the ratio reaches the target; None if not measured."""
        if self.ratio is None:
            return None
        reached = self.ratio >= self.target if self.higher_is_better else self.ratio <= self.target
        return self.correct and reached


def interleaved(
    ours: Callable[[], object], *rivals: Callable[[], object], repeats: int = 7, warm_up: int = 2
) -> tuple[float, ...]:
    """Median seconds of `ours` and of each rival, run alternately so that a slow machine slows all of them.

    Measures CPU time of this process on one thread, which other programs disturb least.
    """
    runs = (ours, *rivals)
    times: list[list[float]] = [[] for _ in runs]
    gc.collect()
    with one_thread():
        for turn in range(warm_up + repeats):
            for run, kept in zip(runs, times, strict=True):
                start = time.process_time()
                run()
                if turn >= warm_up:
                    kept.append(time.process_time() - start)
    return tuple(statistics.median(kept) for kept in times)


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch computes on one thread inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
