"""A Chroma too small to be useful in which every part counts, and inputs for it."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import settings
from torch import Tensor

from flowloom.nn.chroma import Chroma, ChromaParams
from flowloom.nn.patches import image_ids

# Properties hold however long a busy machine takes to show them.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")

SMALL = ChromaParams(16, 24, 64, 4.0, 2, 2, 3, (4, 14, 14), 10_000, True, 32, 2, 48)


@pytest.fixture
def make_chroma() -> Callable[[], Chroma]:
    """Makes the same network at each call; no weight is zero, the approximator is frozen."""

    def make() -> Chroma:
        draw = torch.Generator().manual_seed(0)
        model = Chroma(SMALL)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                mean, std = (1.0, 0.2) if name.endswith("scale") else (0.0, weight.shape[-1] ** -0.5)
                weight.copy_(mean + std * torch.randn(weight.shape, generator=draw))
        model.distilled_guidance_layer.requires_grad_(False)
        return model

    return make


@pytest.fixture
def chroma(make_chroma: Callable[[], Chroma]) -> Chroma:
    return make_chroma()


@pytest.fixture
def inputs() -> dict[str, Tensor]:
    """Three samples of 4 x 3 image tokens and 9 text tokens."""
    draw = torch.Generator().manual_seed(1)
    return {
        "latents": torch.randn(3, 12, SMALL.in_channels, generator=draw),
        "noise_level": torch.tensor([0.1, 0.6, 1.0]),
        "text": torch.randn(3, 9, SMALL.context_in_dim, generator=draw),
        "image_ids": image_ids(8, 6),
    }


@pytest.fixture
def lengths_mask() -> Tensor:
    """(3, 9): texts of 4, 9 and 1 tokens."""
    return torch.arange(9) < torch.tensor([4, 9, 1])[:, None]
