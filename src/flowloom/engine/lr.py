"""The learning rate as a function of step and progress; there is no scheduler state to save."""

from __future__ import annotations

import math

from flowloom.config.run import LrScheduleSection, RunConfig

WARMUP_START = 0.05
"""FLOW's warm-up starts at this share of the learning rate."""


def lr_factor(
    config: RunConfig, step: int, progress: float = 0.0, steps_since_reset: int | None = None
) -> float:
    """The share of `training.lr` used by update number `step`, counted from 1.

    A decay reaches `min_ratio` after the last update, so that no update is made with a rate of 0.

    Args:
        progress: share of the run, in [0, 1), that is done before this update.
        steps_since_reset: number of this update since the optimizer was made, where rotation resets
            it and FLOW warms up again; `step` itself otherwise.
    """
    warmup = config.training.warmup_steps
    climbed = step if steps_since_reset is None else steps_since_reset
    factor = 1.0 if climbed >= warmup else WARMUP_START + (1 - WARMUP_START) * climbed / warmup
    return factor * _decay(config.lr_schedule, progress)


def _decay(schedule: LrScheduleSection, progress: float) -> float:
    if schedule.kind == "cosine":
        return schedule.min_ratio + (1 - schedule.min_ratio) * 0.5 * (1 + math.cos(math.pi * progress))
    if schedule.kind == "wsd" and schedule.decay_share:
        decayed = max(progress - (1 - schedule.decay_share), 0) / schedule.decay_share
        return 1 - (1 - schedule.min_ratio) * decayed
    return 1.0
