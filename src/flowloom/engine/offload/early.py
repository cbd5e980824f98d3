"""Gradients that are used as soon as they exist, so that few of them exist at a time."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from flowloom.optimizers.updates.single import SingleUpdates


class EarlyGradients:
    """Takes each gradient from its weight in the backward pass, once it is complete."""

    def __init__(self, weights: Sequence[nn.Parameter]):
        self._norms: list[Tensor | None] = [None] * len(weights)
        self._hooks: list[RemovableHandle] = [
            weight.register_post_accumulate_grad_hook(partial(self._take, place))
            for place, weight in enumerate(weights)
        ]

    def backward(self, loss: Tensor, *, is_last: bool) -> None:  # noqa: ARG002 -- hooks see each micro-batch
        """Run the backward pass."""
        loss.backward()

    def close(self) -> None:
        """Remove the hooks from the weights."""
        for hook in self._hooks:
            hook.remove()

    def _take(self, place: int, weight: Tensor) -> None:
        raise NotImplementedError

    def _note_norm(self, place: int, gradient: Tensor) -> None:
        self._norms[place] = torch.linalg.vector_norm(gradient)

    def _total_norm(self) -> Tensor:
        """The norm of all gradients since the last call, from their norms in the order of the weights."""
        norms = [norm for norm in self._norms if norm is not None]
        self._norms = [None] * len(self._norms)
        return cast("Tensor", torch.linalg.vector_norm(torch.stack(norms))) if norms else torch.tensor(0.0)


class FusedGradients(EarlyGradients):
    """Updates each weight on its device within the backward pass, and frees its gradient.

    Every node that reads a weight in the backward pass comes before the weight's gradient is complete.
    """

    def __init__(self, weights: Sequence[nn.Parameter], optimizer: torch.optim.Optimizer):
        super().__init__(weights)
        self._updates = SingleUpdates(optimizer)

    def finish(self, max_norm: float | None) -> Tensor:  # noqa: ARG002 -- rejected by the configuration
        """The norm of all gradients of the update."""
        return self._total_norm()

    def apply(self) -> None:
        """Nothing: every weight is updated."""

    def _take(self, place: int, weight: Tensor) -> None:
        assert weight.grad is not None
        self._note_norm(place, weight.grad)
        self._updates.step(weight)
