"""What a benchmark returns, and how two ways of doing the same are timed fairly."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Measured:
    """One benchmark's result."""

    ratio: float | None
    """Rival's cost over ours, or the figure that the benchmark's docstring names; None: not measured here."""
    target: float
    correct: bool
    """Whether the results agree, which is checked before anything is timed."""
    higher_is_better: bool = True
    detail: dict[str, Any] = field(default_factory=dict)

    @property
    def passed(self) -> bool | None:
        """Whether the results agree and the ratio reaches the target; None where it was not measured."""
        if self.ratio is None:
            return None
        reached = self.ratio >= self.target if self.higher_is_better else self.ratio <= self.target
        return self.correct and reached


def interleaved(
    ours: Callable[[], object], rival: Callable[[], object], repeats: int = 5, warm_up: int = 1
) -> tuple[float, float]:
    """Median seconds of `ours` and of `rival`, run in turns: what slows the machine down slows both."""
    times: tuple[list[float], list[float]] = ([], [])
    gc.collect()
    for round_ in range(warm_up + repeats):
        for run, kept in zip((ours, rival), times, strict=True):
            start = time.perf_counter()
            run()
            if round_ >= warm_up:
                kept.append(time.perf_counter() - start)
    return statistics.median(times[0]), statistics.median(times[1])
