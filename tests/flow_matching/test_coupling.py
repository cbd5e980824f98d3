"""Noise goes to the image that it is closest to in direction, each to one."""

from itertools import permutations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cosine_similarity

from flowloom.flow_matching.coupling import optimal_transport, similarities


def pairs(size: int, seed: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(size, 3, 2, generator=draw), torch.randn(size, 3, 2, generator=draw)


def order_of(latents: Tensor, noise: Tensor) -> Tensor:
    return optimal_transport(torch.stack(similarities(latents, noise)))


def closeness(latents: Tensor, noise: Tensor) -> float:
    return cosine_similarity(latents.flatten(1), noise.flatten(1)).sum().item()


@given(st.integers(1, 5), st.integers(0, 1000))
def test_no_other_pairing_is_closer(size: int, seed: int):
    latents, noise = pairs(size, seed)
    order = order_of(latents, noise)
    assert sorted(order.tolist()) == list(range(size))
    best = max(closeness(latents, noise[list(other)]) for other in permutations(range(size)))
    assert closeness(latents, noise[order]) >= best - 1e-5


@given(st.integers(0, 1000), st.floats(1e-3, 1e3))
def test_only_directions_count(seed: int, scale: float):
    latents, noise = pairs(4, seed)
    scales = torch.tensor([1.0, scale, 1.0, 1.0])[:, None, None]
    assert torch.equal(order_of(latents * scales, noise), order_of(latents, noise))


def test_images_of_nothing_are_paired_too():
    latents, noise = pairs(4, 0)
    latents[1:3] = 0
    order = order_of(latents, noise)
    assert sorted(order.tolist()) == [0, 1, 2, 3]
    kept = order_of(torch.zeros_like(latents), torch.zeros_like(noise))
    assert sorted(kept.tolist()) == [0, 1, 2, 3]


def test_shuffled_copies_find_their_originals():
    latents, _ = pairs(32, 1)
    order = torch.randperm(32, generator=torch.Generator().manual_seed(2))
    assert torch.equal(latents[order][order_of(latents, latents[order])], latents)


def test_half_precision_is_enough():
    latents, noise = pairs(6, 3)
    order = order_of(latents.bfloat16(), noise.bfloat16())
    assert sorted(order.tolist()) == list(range(6))
