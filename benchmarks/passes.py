"""Inputs for the small network, and one forward and backward pass, for the benchmarks of the network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.full_step import IMAGE_TOKENS, SMALL, network
from flowloom.nn.patches import image_ids

__all__ = ["Inputs", "forward_backward", "largest_difference", "network", "random_inputs"]


class Inputs(NamedTuple):
    """A batch for the small network."""

    latents: Tensor
    noise_level: Tensor
    texts: list[Tensor]
    image_ids: Tensor

    def padded(self, length: int) -> tuple[Tensor, Tensor]:
        """The texts (B, length, C), padded with states like T5's, which are not zero, and the mask."""
        generator = torch.Generator().manual_seed(1)
        text = torch.randn(len(self.texts), length, SMALL.context_in_dim, generator=generator)
        for row, own in zip(text, self.texts, strict=True):
            row[: len(own)] = own
        ends = torch.tensor([len(own) for own in self.texts])
        return text, torch.arange(length) < ends[:, None]


def random_inputs(lengths: Sequence[int], seed: int = 0) -> Inputs:
    """One sample for each text length."""
    generator = torch.Generator().manual_seed(seed)
    side = 2 * int(IMAGE_TOKENS**0.5)
    return Inputs(
        torch.randn(len(lengths), IMAGE_TOKENS, SMALL.in_channels, generator=generator),
        torch.rand(len(lengths), generator=generator),
        [torch.randn(length, SMALL.context_in_dim, generator=generator) for length in lengths],
        image_ids(side, side),
    )


def forward_backward(model: nn.Module, predict: Callable[[], Tensor]) -> Callable[[], None]:
    """A pass forwards and backwards through `model`, whose prediction `predict` makes."""

    def run() -> None:
        model.zero_grad(set_to_none=True)
        predict().square().mean().backward()

    return run


@torch.no_grad()
def largest_difference(ours: Callable[[], Tensor], theirs: Callable[[], Tensor]) -> float:
    """The largest absolute difference between two predictions."""
    return (ours() - theirs()).abs().max().item()
