"""The weights that a host optimizer updates: exact copies of the trained weights, in host memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn


class HostWeights:
    """Copies of the weights that are trained now, and of those whose optimizer state is parked."""

    def __init__(self, dtype: torch.dtype | None):
        self._dtype = dtype
        self.copies: dict[str, nn.Parameter] = {}
        self._trained: set[str] = set()
        self._recorded: Mapping[str, Tensor] = {}

    def restore(self, recorded: Mapping[str, Tensor]) -> None:
        """Let the next `follow` begin with the values of a checkpoint, where it has them."""
        self.copies, self._trained, self._recorded = {}, set(), recorded

    def follow(
        self, weights: Mapping[str, nn.Parameter], trained: Sequence[str], parked: Iterable[str]
    ) -> None:
        """Keep copies of `trained` and `parked` alone, from the values of `weights` where there is none yet.

        The dtype is that of `__init__`, or with None that of each weight.
        """
        held, self.copies = self.copies, {}
        # A checkpoint that is written now may refer to a parked copy: it must not change when it is trained.
        begun = {name for name in trained if name not in self._trained}
        for name in (*trained, *parked):
            if name in held and name not in begun:
                self.copies[name] = held[name]
                continue
            source = held.get(name)
            if source is None:
                source = self._recorded[name] if name in self._recorded else weights[name].detach()
            # Contiguous, in memory that no file backs.
            copy = torch.empty(source.shape, dtype=self._dtype or weights[name].dtype)
            self.copies[name] = nn.Parameter(copy.copy_(source.detach()))
        self._trained, self._recorded = set(trained), {}
