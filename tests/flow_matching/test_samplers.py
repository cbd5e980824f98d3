"""Samplers arrive where the velocity field leads, each with its order; the schedule is FLOW's."""

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from flowloom.flow_matching.noise_level import shifted_quantile
from flowloom.flow_matching.samplers import SAMPLERS, dpmpp_2m, euler, midpoint, schedule

EVERY = pytest.mark.parametrize("name", SAMPLERS)
ORDERS = {"euler": 1, "heun": 2, "midpoint": 2, "dpmpp_2m": 2}
NOISE = torch.tensor([[0.7, -1.3, 2.0]], dtype=torch.float64)


def test_the_schedule_is_flows():
    expected = [1.0, 0.8318, 0.6225, 0.3547, 0.0]
    assert schedule(4, 256) == pytest.approx(expected, abs=5e-5)
    levels = schedule(20, 1024)
    assert levels[:4] == pytest.approx([1.0, 0.9727, 0.9441, 0.9141], abs=5e-5)
    assert levels[-3:] == pytest.approx([0.1726, 0.0899, 0.0], abs=5e-5)


@given(st.integers(1, 100), st.integers(1, 16384))
def test_the_schedule_falls_from_1_to_0(steps: int, tokens: int):
    levels = schedule(steps, tokens)
    assert len(levels) == steps + 1
    assert (levels[0], levels[-1]) == (1.0, 0.0)
    assert all(later < earlier for earlier, later in pairwise(levels))


@pytest.mark.parametrize(("tokens", "mu"), [(256, 0.5), (1024, 0.63), (4096, 1.15)])
def test_the_shift_grows_with_the_image(tokens: int, mu: float):
    even = torch.linspace(1, 0, 9, dtype=torch.float64)
    expected = shifted_quantile(even, math.exp(mu)).tolist()
    assert schedule(8, tokens) == pytest.approx(expected, abs=1e-6)


@EVERY
@given(steps=st.integers(1, 12), tokens=st.integers(1, 5000))
def test_straight_paths_are_followed_exactly(name: str, steps: int, tokens: int):
    image = torch.tensor([[0.5, 2.0, -1.0]], dtype=torch.float64)
    found = SAMPLERS[name](lambda x, level: NOISE - image, NOISE, schedule(steps, tokens))
    torch.testing.assert_close(found, image)


@EVERY
@given(steps=st.integers(1, 12))
def test_a_single_image_is_found_exactly(name: str, steps: int):
    image = torch.tensor([[0.5, 2.0, -1.0]], dtype=torch.float64)
    found = SAMPLERS[name](lambda x, level: (x - image) / level, NOISE, schedule(steps, 256))
    torch.testing.assert_close(found, image)


def test_midpoint_is_exact_where_velocity_is_linear_in_the_level():
    found = midpoint(lambda x, level: 3 + 4 * level + 0 * x, NOISE, [1.0, 0.7, 0.1, 0.0])
    torch.testing.assert_close(found, NOISE - 3 - 2)


def gaussian(std: float) -> Callable[[Tensor, float], Tensor]:
    """The velocity of images that are normal with deviation `std`: its paths are curved, and known.

    x keeps its distance in deviations of the marginal, sqrt((1 - t)^2 std^2 + t^2).
    """

    def velocity(x: Tensor, level: float) -> Tensor:
        variance = (1 - level) ** 2 * std**2 + level**2
        return x * (level - (1 - level) * std**2) / variance

    return velocity


def deviation(level: float, std: float = 0.4) -> float:
    return math.hypot((1 - level) * std, level)


@EVERY
def test_errors_shrink_with_the_samplers_order(name: str):
    errors = []
    for steps in (32, 64, 128):
        levels = [0.9 - 0.8 * i / steps for i in range(steps + 1)]
        found = SAMPLERS[name](gaussian(0.4), deviation(0.9) * NOISE, levels)
        errors.append((found - deviation(0.1) * NOISE).abs().max().item())
    assert all(math.log2(a / b) > ORDERS[name] - 0.2 for a, b in pairwise(errors)), errors


def test_dpmpp_carries_the_image_on_along_the_log_snr():
    images = {0.8: torch.tensor([1.0]), 0.5: torch.tensor([3.0])}
    # log((1 - t) / t) is -log 4, 0, log 2: half as far as the step before, so a quarter of the change.
    found = dpmpp_2m(lambda x, level: (x - images[level]) / level, torch.tensor([5.0]), [0.8, 0.5, 1 / 3])
    first = 0.5 / 0.8 * 5 + (1 - 0.5 / 0.8) * 1
    ratio = (1 / 3) / 0.5
    assert found.item() == pytest.approx(ratio * first + (1 - ratio) * (3 + (3 - 1) / 4))


@EVERY
def test_second_order_pays_for_itself(name: str):
    def error(sampler: str, steps: int) -> float:
        found = SAMPLERS[sampler](gaussian(0.4), NOISE, schedule(steps, 256))
        return (found - 0.4 * NOISE).abs().max().item()

    evaluations = 2 if name in ("heun", "midpoint") else 1
    assert error(name, 24 // evaluations) <= error("euler", 24)


@EVERY
def test_the_model_is_called_at_levels_that_it_supports(name: str):
    levels: list[float] = []

    def model(x: Tensor, level: float) -> Tensor:
        levels.append(level)
        return x / level

    SAMPLERS[name](model, NOISE, schedule(5, 256))
    assert levels[0] == 1.0
    assert all(0 < level <= 1 for level in levels)
    assert len(levels) == {"euler": 5, "heun": 9, "midpoint": 10, "dpmpp_2m": 5}[name]


@EVERY
def test_the_callback_sees_every_step(name: str):
    seen: list[tuple[int, Tensor]] = []
    last = SAMPLERS[name](gaussian(0.4), NOISE, schedule(3, 256), lambda step, x: seen.append((step, x)))
    assert [step for step, _ in seen] == [0, 1, 2]
    assert torch.equal(seen[-1][1], last)


@EVERY
def test_the_given_noise_is_unchanged(name: str):
    before = NOISE.clone()
    SAMPLERS[name](gaussian(0.4), NOISE, schedule(3, 256))
    assert torch.equal(NOISE, before)


def test_levels_may_start_below_1():
    found = euler(gaussian(1.0), NOISE, [0.5, 0.25, 0.0])
    assert found.isfinite().all()
