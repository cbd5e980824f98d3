"""Noise levels follow their densities, continuously, from 0 to 1."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from flowloom.flow_matching.noise_level import (
    cut,
    flow_quantile,
    logit_normal_quantile,
    shifted_quantile,
    uniform_quantile,
)

QUANTILES: dict[str, Callable[[Tensor], Tensor]] = {
    "flow": flow_quantile,
    "uniform": uniform_quantile,
    "logit_normal": lambda u: logit_normal_quantile(u, 0.3, 1.2),
    "shifted": lambda u: shifted_quantile(u, 3.0),
}


def normal_density(z: Tensor) -> Tensor:
    return (-0.5 * z.square()).exp() / (2 * torch.pi) ** 0.5


DENSITIES: dict[str, Callable[[Tensor], Tensor]] = {
    "flow": lambda t: (-7.7 * (t - 0.5) ** 2 + 2) / (2 - 7.7 / 12),
    "uniform": torch.ones_like,
    "logit_normal": lambda t: normal_density((t.logit() - 0.3) / 1.2) / (1.2 * t * (1 - t)),
    "shifted": lambda t: 3 / (3 - 2 * t) ** 2,
}
KINDS = pytest.mark.parametrize("kind", QUANTILES)


def integrals(density: Callable[[Tensor], Tensor], upper: Tensor) -> Tensor:
    """The density's integral from 0 to each of `upper`, by the midpoint rule."""
    cells = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    return torch.stack([(density(cells * end) * end).mean() for end in upper.double()])


@KINDS
def test_a_level_is_the_inverse_of_the_densitys_integral(kind: str):
    u = torch.tensor([1e-4, 0.01, 0.1, 0.3, 0.5, 0.77, 0.95, 0.999], dtype=torch.float64)
    torch.testing.assert_close(integrals(DENSITIES[kind], QUANTILES[kind](u)), u, atol=2e-6, rtol=0)


@KINDS
def test_realised_levels_have_the_density(kind: str):
    draw = torch.Generator().manual_seed(0)
    levels = QUANTILES[kind](torch.rand(200_000, generator=draw, dtype=torch.float64))
    edges = torch.linspace(0, 1, 51, dtype=torch.float64).clamp(1e-12, 1 - 1e-12)
    expected = integrals(DENSITIES[kind], edges).diff() * len(levels)
    counts = torch.histc(levels.double(), 50, 0, 1)
    # Each bin's count is Poisson: five deviations are enough for all fifty, always.
    assert ((counts - expected).abs() <= 5 * expected.sqrt() + 1).all()


@KINDS
@given(u=st.lists(st.floats(0, 1, exclude_max=True), min_size=2, max_size=20))
def test_levels_are_float32_in_range_and_in_order(kind: str, u: list[float]):
    levels = QUANTILES[kind](torch.tensor(sorted(u), dtype=torch.float64))
    assert levels.dtype == torch.float32
    assert ((levels >= 0) & (levels <= 1)).all()
    assert (levels.diff() >= 0).all()


@KINDS
def test_no_level_is_out_of_reach(kind: str):
    u = torch.linspace(0, 1, 1_000_001, dtype=torch.float64)
    levels = QUANTILES[kind](u)
    assert levels[0] == 0
    assert levels[-1] == 1
    # FLOW's own points are a thousandth apart.
    assert levels[1:-1].diff().max() < 1e-3


def test_flows_density_has_its_published_moments():
    levels = flow_quantile((torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000).double()
    assert levels.mean() == pytest.approx(0.5, abs=1e-6)
    assert levels.std() == pytest.approx(0.2277, abs=1e-4)


def test_single_precision_numbers_are_taken_unchanged():
    u = torch.rand(100, generator=torch.Generator().manual_seed(0))
    for quantile in QUANTILES.values():
        torch.testing.assert_close(quantile(u), quantile(u.double()), atol=0, rtol=0)


@pytest.mark.parametrize(("lowest", "highest"), [(0.875, 1.0), (0.0, 0.875)])
def test_a_cut_density_is_the_density_between_two_levels(lowest: float, highest: float):
    def shifted(u: Tensor) -> Tensor:
        return shifted_quantile(u, 3.0)

    u = torch.linspace(0, 1, 100_001, dtype=torch.float64)[:-1]
    whole, inside = shifted(u), cut(shifted, lowest, highest)(u)
    assert inside.min() >= lowest
    assert inside.max() <= highest
    expected = whole[(whole >= lowest) & (whole <= highest)]
    quantiles = torch.linspace(0, 1, 11)
    torch.testing.assert_close(inside.quantile(quantiles), expected.quantile(quantiles), rtol=0, atol=1e-4)
