"""The learning rate as a function of the step; there is no scheduler state to save."""

from __future__ import annotations

import math

from flowloom.spec.run import RunConfig

WARMUP_START = 0.05
"""FLOW's warm-up climbs from this share of the learning rate."""


def lr_factor(config: RunConfig, step: int, steps_since_reset: int | None = None) -> float:
    """The share of `training.lr` used by update number `step`, counted from 1.

    Args:
        steps_since_reset: number of this update since the optimizer was made, where rotation resets
            it and FLOW warms up again; `step` itself otherwise.
    """
    warmup = config.training.warmup_steps
    climbed = step if steps_since_reset is None else steps_since_reset
    factor = 1.0 if climbed >= warmup else WARMUP_START + (1 - WARMUP_START) * climbed / warmup
    return factor * _decay(config, step)


def _decay(config: RunConfig, step: int) -> float:
    schedule, last = config.lr_schedule, config.limits.max_steps
    if schedule.kind == "constant" or last is None:
        return 1.0
    if schedule.kind == "cosine":
        start = config.training.warmup_steps
        progress = min(max(step - start, 0) / max(last - start, 1), 1.0)
        return schedule.min_ratio + (1 - schedule.min_ratio) * 0.5 * (1 + math.cos(math.pi * progress))
    start = last - round(last * schedule.decay_share)
    progress = min(max(step - start, 0) / max(last - start, 1), 1.0)
    return 1 - (1 - schedule.min_ratio) * progress
