"""The path is straight, and its velocity leads from image to noise."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flowloom.flow_matching.path import interpolate, velocity_from_x0, velocity_target


def rows(count: int, *shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(7,), (5, 4), (3, 2, 2)])
def test_the_path_begins_at_the_image_and_ends_at_noise(shape: tuple[int, ...]):
    latents, noise = rows(2, *shape), rows(2, *shape, seed=1)
    assert torch.equal(interpolate(latents, noise, torch.zeros(2)), latents)
    assert torch.equal(interpolate(latents, noise, torch.ones(2)), noise)


@given(st.floats(0, 1), st.floats(0, 1))
def test_velocity_leads_from_any_point_to_any_other(start: float, end: float):
    latents, noise = rows(2, 3, 4), rows(2, 3, 4, seed=1)
    a, b = (interpolate(latents, noise, torch.full((2,), t)) for t in (start, end))
    torch.testing.assert_close(a + (end - start) * velocity_target(latents, noise), b)


def test_each_sample_has_its_own_level():
    latents, noise = rows(3, 5, 2), rows(3, 5, 2, seed=1)
    x = interpolate(latents, noise, torch.tensor([0.0, 0.5, 1.0]))
    torch.testing.assert_close(x, torch.stack((latents[0], (latents[1] + noise[1]) / 2, noise[2])))


def test_levels_are_not_rounded_to_the_latents_precision():
    latents, noise = torch.zeros(1, 4, dtype=torch.bfloat16), torch.ones(1, 4, dtype=torch.bfloat16)
    assert interpolate(latents, noise, torch.tensor([0.50123]))[0, 0] == torch.tensor(0.50123)


@pytest.mark.parametrize("level", [torch.tensor([0.2, 0.9]), torch.tensor([0.4])])
def test_the_image_seen_gives_the_velocity(level: torch.Tensor):
    latents, noise = rows(2, 3, 4), rows(2, 3, 4, seed=1)
    x = interpolate(latents, noise, level)
    torch.testing.assert_close(velocity_from_x0(latents, x, level, 0.0), velocity_target(latents, noise))


def test_eps_keeps_the_objective_finite_near_the_image():
    x, seen = torch.ones(1, 2), torch.zeros(1, 2)
    assert velocity_from_x0(seen, x, torch.zeros(1), 0.05).tolist() == [[20.0, 20.0]]
