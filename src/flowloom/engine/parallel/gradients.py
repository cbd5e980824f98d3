"""From a loss to gradients that are summed over the ranks and clipped."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

import torch
from torch import Tensor, nn

from flowloom.engine.parallel.ranks import Ranks

TRANSFER_BYTES = 2**28
"""Bytes of gradients sent together: enough to use the link, with little memory for their copy."""


class Gradients(Protocol):
    """The gradients of the weights that are trained now; a rotation makes another one."""

    def backward(self, loss: Tensor, *, is_last: bool) -> None:
        """Add the gradients of `loss`, one micro-batch's share of the update's loss.

        A rank without samples in an update makes no call before `finish`.

        Args:
            is_last: no other micro-batch of the update follows on this rank.
        """
        ...

    def finish(self, max_norm: float | None) -> Tensor:
        """Sum the gradients over the ranks and clip them to the norm `max_norm`.

        Returns:
            0-d: the norm of all gradients before clipping.
        """
        ...

    def close(self) -> None:
        """Remove hooks from the weights: other weights are trained from now on."""
        ...


class SummedGradients:
    """Sums the gradients over the ranks after the backward pass."""

    def __init__(self, ranks: Ranks, parameters: Iterable[nn.Parameter]):
        self._ranks = ranks
        self._parameters = list(parameters)

    def backward(self, loss: Tensor, *, is_last: bool) -> None:  # noqa: ARG002 -- nothing overlaps
        loss.backward()

    def finish(self, max_norm: float | None) -> Tensor:
        """Sum gradients in place, many in one transfer, then clip.

        The loss is already divided by the weight of the whole update, so gradients are summed,
        not averaged. A rank whose slice was empty contributes zeros.
        """
        if self._ranks.size > 1:
            for gradients in in_transfers(self._parameters):
                summed = self._ranks.sum(torch.cat([gradient.flatten() for gradient in gradients]))
                pieces = torch.split(summed, [gradient.numel() for gradient in gradients])
                for gradient, piece in zip(gradients, pieces, strict=True):
                    gradient.copy_(piece.view_as(gradient))
        return clip(self._parameters, max_norm)

    def close(self) -> None:
        """Nothing: there are no hooks."""


def gradients_of(ranks: Ranks, parameters: Iterable[nn.Parameter]) -> Gradients:
    """The gradients of `parameters`, as the ranks are connected."""
    return SummedGradients(ranks, parameters)


def in_transfers(parameters: Iterable[nn.Parameter]) -> Iterator[list[Tensor]]:
    """The gradients, of one dtype and about `TRANSFER_BYTES` at a time; zeros where there is none."""
    begun: dict[torch.dtype, tuple[list[Tensor], int]] = {}
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        gradients, size = begun.pop(parameter.dtype, ([], 0))
        gradients.append(parameter.grad)
        size += parameter.grad.nbytes
        if size >= TRANSFER_BYTES:
            yield gradients
        else:
            begun[parameter.dtype] = gradients, size
    for gradients, _ in begun.values():
        yield gradients


def clip(parameters: Iterable[nn.Parameter], max_norm: float | None) -> Tensor:
    """Clip the gradients to the norm `max_norm` and return the norm before."""
    parameters = list(parameters)
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    if max_norm is not None:
        nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm
