"""A small Chroma, inputs for it, and adapters that have learnt something."""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from flowloom.nn.chroma import Chroma, ChromaParams
from flowloom.parts.adapters.adapter import Adapter, Kind, attach

PARAMS = ChromaParams(16, 32, 64, 4.0, 2, 2, 2, (4, 14, 14), 10_000, True, 16, 2, 32)
TARGETS = ["double_blocks", "single_blocks", "img_in", "txt_in", "final_layer"]


class Inputs(NamedTuple):
    """What Chroma's forward takes, in its order."""

    latents: Tensor
    noise_level: Tensor
    text: Tensor
    image_ids: Tensor


@pytest.fixture
def inputs() -> Inputs:
    generator = torch.Generator().manual_seed(1)
    ids = torch.stack([torch.zeros(12), torch.arange(12) // 4, torch.arange(12) % 4], dim=1)
    return Inputs(
        torch.randn(2, 12, 16, generator=generator),
        torch.tensor([0.25, 0.75]),
        torch.randn(2, 6, 32, generator=generator),
        ids,
    )


@pytest.fixture
def make_network() -> Callable[[], Chroma]:
    """Makes the same network at each call."""

    def make() -> Chroma:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return Chroma(PARAMS)

    return make


@pytest.fixture
def attach_trained() -> Callable[..., Adapter]:
    """Attaches an adapter whose weights are not the first ones."""

    def attach_it(
        network: nn.Module, kind: Kind, rank: int = 4, alpha: float = 2.0, targets: list[str] = TARGETS
    ) -> Adapter:
        adapter = attach(network, kind, rank, alpha, targets)
        generator = torch.Generator().manual_seed(2)
        for parameter in adapter.parameters.values():
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
        return adapter

    return attach_it
