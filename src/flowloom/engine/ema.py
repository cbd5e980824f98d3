"""An exponential moving average of the trained weights."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

AT_ONCE = 16
"""Weights averaged at a time; bfloat16 weights need float32 copies meanwhile."""


class Ema:
    """Shadow weights in float32: shadow <- decay * shadow + (1 - decay) * weight.

    In bfloat16 a decay of 0.9999 would round every update away, hence always float32.
    A weight joins when it is first trained; under rotation it stays and continues to follow.
    """

    def __init__(self, decay: float, on_cpu: bool):
        self.decay = decay
        self.on_cpu = on_cpu
        self.shadow: dict[str, Tensor] = {}

    def decay_at(self, step: int) -> float:
        """The decay at `step`: small at first, so that the initial weights are soon forgotten."""
        return min(self.decay, (1 + step) / (10 + step))

    @torch.no_grad()
    def follow(self, weights: Mapping[str, nn.Parameter]) -> None:
        """Add weights that are not followed yet, with their current values."""
        for name, weight in weights.items():
            if name not in self.shadow:
                device = torch.device("cpu") if self.on_cpu else weight.device
                self.shadow[name] = weight.detach().to(device, torch.float32, copy=True)

    @torch.no_grad()
    def update(self, weights: Mapping[str, nn.Parameter], step: int) -> None:
        """Move every shadow towards its weight after the optimizer's `step`."""
        pairs = list(self.shadow.items())
        for start in range(0, len(pairs), AT_ONCE):
            some = pairs[start : start + AT_ONCE]
            targets = [weights[name].detach().to(s.device, torch.float32) for name, s in some]
            shadows, amount = [shadow for _, shadow in some], 1 - self.decay_at(step)
            torch._foreach_lerp_(shadows, targets, amount)  # pyright: ignore[reportPrivateUsage]

    @contextmanager
    def swapped_in(self, weights: Mapping[str, nn.Parameter]) -> Generator[None]:
        """Put the averaged weights in place of the trained ones, within a `with` block."""
        # In place: streamed weights have a fixed place in host memory.
        kept = {name: weights[name].data.clone() for name in self.shadow}
        try:
            for name, shadow in self.shadow.items():
                weights[name].data.copy_(shadow)
            yield
        finally:
            for name, data in kept.items():
                weights[name].data.copy_(data)
