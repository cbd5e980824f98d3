"""Densities of the noise level, each as its inverse CDF: uniform numbers in, noise levels out.

All are continuous: every level between 0 and 1 can be drawn. Input is (N,) in [0, 1), best in float64;
output is (N,) float32 in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

_STEEPNESS, _TOP = 7.7, 2.0
_AREA = _TOP - _STEEPNESS / 12


def flow_quantile(u: Tensor) -> Tensor:
    """FLOW's density 2 - 7.7 (t - 0.5)^2, divided by its area: mean 0.5, deviation 0.228.

    With c = t - 0.5 the CDF is a cubic, 7.7/3 c^3 - 2 c + area (u - 0.5) = 0, whose root in [-0.5, 0.5] has
    a closed form (Viète): c = m sin(asin(s) / 3). FLOW draws from 1000 points of the same density.
    """
    m = 2 * math.sqrt(_TOP / _STEEPNESS)
    s = 3 * _AREA * (u.double() - 0.5) / (_TOP * m)
    return (0.5 + m * torch.sin(torch.asin(s) / 3)).clamp(0, 1).float()


def uniform_quantile(u: Tensor) -> Tensor:
    """Every level as often as any other."""
    return u.double().clamp(0, 1).float()


def logit_normal_quantile(u: Tensor, mean: float, std: float) -> Tensor:
    """The sigmoid of a normal variable (Esser et al. 2024, arXiv:2403.03206, section 3.1)."""
    return torch.sigmoid(mean + std * torch.special.ndtri(u.double())).float()  # pyright: ignore[reportUnknownArgumentType]


def shifted_quantile(u: Tensor, shift: float) -> Tensor:
    """Uniform levels moved towards noise, s t / (1 + (s - 1) t) (arXiv:2403.03206, section 5.3.2)."""
    t = u.double()
    return (shift * t / (1 + (shift - 1) * t)).clamp(0, 1).float()


def cut(quantile: Callable[[Tensor], Tensor], lowest: float, highest: float) -> Callable[[Tensor], Tensor]:
    """The density of `quantile` without the levels outside of `lowest` to `highest`, divided by its area."""
    start, stop = (_cumulative(quantile, level) for level in (lowest, highest))

    def inside(u: Tensor) -> Tensor:
        return quantile(start + (stop - start) * u.double()).clamp(lowest, highest)

    return inside


def _cumulative(quantile: Callable[[Tensor], Tensor], level: float) -> float:
    """The share of levels below `level`, by bisection."""
    low, high = 0.0, 1.0
    while high - low > 1e-12:
        middle = (low + high) / 2
        below = quantile(torch.tensor([middle], dtype=torch.float64)).item() < level
        low, high = (middle, high) if below else (low, middle)
    return (low + high) / 2
