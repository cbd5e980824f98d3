"""Small networks made from nothing are ready to be trained."""

import dataclasses

import pytest
import torch

from flowloom.nn.chroma import Chroma
from flowloom.nn.patches import image_ids
from flowloom.nn.tiny import SHIFT_DEVIATION, TINY, random_chroma_weights

SMALLER = dataclasses.replace(TINY, hidden_size=64, num_heads=2, depth=1, depth_single_blocks=1)


def made(params=TINY, seed: int = 0) -> Chroma:
    model = Chroma(params)
    model.load_state_dict(random_chroma_weights(params, seed))
    return model


def test_a_seed_makes_one_network():
    first, again, other = (random_chroma_weights(SMALLER, seed) for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["img_in.weight"], other["img_in.weight"])


@pytest.mark.parametrize("params", [TINY, SMALLER])
def test_modulations_are_what_training_starts_well_from(params):
    vectors = made(params).modulations(torch.linspace(0, 1, 101))
    shifts, scales, gates = (vectors[:, i::3] for i in range(3))
    assert (gates - 1).abs().mean() < 0.05
    assert scales.abs().mean() < 0.05
    assert shifts.std() == pytest.approx(SHIFT_DEVIATION, rel=0.2)
    # Every level is distinguished from every other, and close levels are alike.
    assert torch.pdist(shifts[::10].flatten(1)).min() > 1
    assert shifts.diff(dim=0).abs().max() < 0.2


def test_an_untrained_network_predicts_nothing():
    model = made(SMALLER)
    latents, text = torch.randn(1, 4, 64), torch.randn(1, 3, TINY.context_in_dim)
    assert not model(latents, torch.tensor([0.5]), text, image_ids(4, 4)).any()


def test_it_learns_at_once():
    model = made(SMALLER)
    model.distilled_guidance_layer.requires_grad_(False)
    draw = torch.Generator().manual_seed(0)
    x, target = (torch.randn(4, 4, 64, generator=draw) for _ in range(2))
    text = torch.randn(4, 3, TINY.context_in_dim, generator=draw)
    levels = torch.linspace(0.2, 0.8, 4)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3, fused=True)
    losses = []
    for _ in range(30):
        loss = (model(x, levels, text, image_ids(4, 4)) - target).square().mean()
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.1 * losses[0]
