"""Ways from noise to image along the velocity field dx/dt = v(x, t), t falling from 1 to 0.

Each sampler takes `model(x, level) -> velocity`, the noise `x`, the levels to visit, and optionally
`callback(step, x)`, called after each step. None evaluates the model at level 0, where a network that
predicts images has no velocity.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Protocol

from torch import Tensor

Model = Callable[[Tensor, float], Tensor]
Callback = Callable[[int, Tensor], None]


class Sampler(Protocol):
    """The interface of samplers."""

    def __call__(
        self, model: Model, x: Tensor, levels: Sequence[float], callback: Callback | None = None, /
    ) -> Tensor: ...


def schedule(steps: int, num_image_tokens: int) -> list[float]:
    """FLOW's `steps` + 1 noise levels from 1 to 0, shifted towards noise for larger images.

    An even grid t becomes e^mu / (e^mu + 1/t - 1), mu linear in the image tokens through (256, 0.5) and
    (4096, 1.15): the shift of FLUX, after Esser et al. 2024 (arXiv:2403.03206, section 5.3.2).
    """
    shift = math.exp(0.5 + (num_image_tokens - 256) / (4096 - 256) * (1.15 - 0.5))
    return shifted_schedule(steps, shift)


def shifted_schedule(steps: int, shift: float) -> list[float]:
    """`steps` + 1 noise levels from 1 to 0: an even grid t becomes s t / (1 + (s - 1) t)."""
    even = (1 - i / steps for i in range(steps + 1))
    return [shift * t / (shift * t + (1 - t)) for t in even]


def euler(model: Model, x: Tensor, levels: Sequence[float], callback: Callback | None = None) -> Tensor:
    """One evaluation a step; exact where paths are straight. FLOW's sampler."""
    for step, (level, following) in enumerate(pairwise(levels)):
        x = x + (following - level) * model(x, level)
        _report(callback, step, x)
    return x


def heun(model: Model, x: Tensor, levels: Sequence[float], callback: Callback | None = None) -> Tensor:
    """The mean of the velocities at both ends of a step: second order, two evaluations a step.

    Algorithm 1 of Karras et al. 2022 (arXiv:2206.00364): the last step, onto level 0, is Euler's.
    """
    for step, (level, following) in enumerate(pairwise(levels)):
        velocity = model(x, level)
        if following > 0:
            ahead = model(x + (following - level) * velocity, following)
            velocity = (velocity + ahead) / 2
        x = x + (following - level) * velocity
        _report(callback, step, x)
    return x


def midpoint(model: Model, x: Tensor, levels: Sequence[float], callback: Callback | None = None) -> Tensor:
    """The velocity half way through a step, for all of it (Runge 1895): second order, two evaluations."""
    for step, (level, following) in enumerate(pairwise(levels)):
        half = (following - level) / 2
        x = x + 2 * half * model(x + half * model(x, level), level + half)
        _report(callback, step, x)
    return x


def dpmpp_2m(model: Model, x: Tensor, levels: Sequence[float], callback: Callback | None = None) -> Tensor:
    """DPM-Solver++(2M): second order with one evaluation a step, from the image that the model sees.

    Algorithm 2 of Lu et al. 2022 (arXiv:2211.01095) for alpha = 1 - t and sigma = t, where the image seen
    at x is D = x - t v and a step from t to s becomes x = s/t x + (1 - s/t) D. D is carried on along the
    log signal-to-noise ratio from the step before; where that is infinite, at both ends, it is unchanged.
    """
    before: Tensor | None = None
    last_width = math.inf
    for step, (level, following) in enumerate(pairwise(levels)):
        image = x - level * model(x, level)
        width = _log_snr(following) - _log_snr(level)
        seen = image
        if before is not None and math.isfinite(width) and math.isfinite(last_width):
            seen = image + width / (2 * last_width) * (image - before)
        ratio = following / level
        x = ratio * x + (1 - ratio) * seen
        before, last_width = image, width
        _report(callback, step, x)
    return x


def _log_snr(level: float) -> float:
    """log((1 - t) / t), the paper's lambda."""
    if level <= 0:
        return math.inf
    return math.log1p(-level) - math.log(level) if level < 1 else -math.inf


def _report(callback: Callback | None, step: int, x: Tensor) -> None:
    if callback is not None:
        callback(step, x)


SAMPLERS: dict[str, Sampler] = {"euler": euler, "heun": heun, "midpoint": midpoint, "dpmpp_2m": dpmpp_2m}
