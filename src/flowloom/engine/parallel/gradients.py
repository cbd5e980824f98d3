"""From a loss to gradients that are summed over the ranks and clipped."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.distributed import Work
from torch.utils.hooks import RemovableHandle

from flowloom.engine.parallel.ranks import Ranks

BUCKET_BYTES = 25 * 2**20
"""Bytes of gradients sent together: many enough to use the link, few enough to begin early. DDP's default."""


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


class LocalGradients:
    """The gradients of a single rank."""

    def __init__(self, parameters: Iterable[nn.Parameter]):
        self._parameters = list(parameters)

    def backward(self, loss: Tensor, *, is_last: bool) -> None:  # noqa: ARG002 -- nothing follows
        loss.backward()

    def finish(self, max_norm: float | None) -> Tensor:
        return clip(self._parameters, max_norm)

    def close(self) -> None:
        """Nothing: there are no hooks."""


class SummedGradients(LocalGradients):
    """Sums the gradients over the ranks, bucket by bucket while the last backward pass computes others.

    All ranks send the same buckets in the same order: a bucket waits for those before it, and `finish` sends
    the rest. Where a weight or a whole rank has no gradient, it contributes zeros.

    The loss is already divided by the weight of the whole update, so gradients are summed, not averaged.
    """

    def __init__(self, ranks: Ranks, parameters: Iterable[nn.Parameter]):
        super().__init__(parameters)
        self._ranks = ranks
        self._buckets = list(in_buckets(self._parameters))
        self._missing = [len(bucket) for bucket in self._buckets]
        self._sent: list[Work] = []
        self._is_last = False
        self._hooks: list[RemovableHandle] = [
            weight.register_post_accumulate_grad_hook(partial(self._after, number))
            for number, bucket in enumerate(self._buckets)
            for weight in bucket
        ]

    def backward(self, loss: Tensor, *, is_last: bool) -> None:
        self._is_last = is_last
        loss.backward()

    def finish(self, max_norm: float | None) -> Tensor:
        while len(self._sent) < len(self._buckets):
            self._send()
        for work in self._sent:
            work.wait()
        self._sent = []
        self._missing = [len(bucket) for bucket in self._buckets]
        return super().finish(max_norm)

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def _after(self, number: int, _weight: Tensor) -> None:
        """Send what is complete, after bucket `number` received a gradient."""
        if self._is_last:
            self._missing[number] -= 1
            while len(self._sent) < len(self._buckets) and not self._missing[len(self._sent)]:
                self._send()

    def _send(self) -> None:
        """Begin to sum the next bucket in one buffer, which its gradients refer to from now on."""
        bucket = self._buckets[len(self._sent)]
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in bucket]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        pieces = torch.split(flat, [gradient.numel() for gradient in gradients])
        for weight, piece in zip(bucket, pieces, strict=True):
            weight.grad = piece.view_as(weight)
        self._sent.append(self._ranks.start_sum(flat))


def gradients_of(ranks: Ranks, parameters: Iterable[nn.Parameter]) -> Gradients:
    """The gradients of `parameters`, as the ranks are connected."""
    return SummedGradients(ranks, parameters) if ranks.size > 1 else LocalGradients(parameters)


def in_buckets(parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Parameters of one dtype and device and about `BUCKET_BYTES`, from the last to the first.

    This is about the order in which a backward pass makes their gradients.
    """
    begun: dict[tuple[torch.dtype, torch.device], list[nn.Parameter]] = {}
    for parameter in reversed(parameters):
        kind = parameter.dtype, parameter.device
        bucket = [*begun.pop(kind, []), parameter]
        if sum(weight.nbytes for weight in bucket) >= BUCKET_BYTES:
            yield bucket
        else:
            begun[kind] = bucket
    yield from begun.values()


def clip(parameters: Iterable[nn.Parameter], max_norm: float | None) -> Tensor:
    """Clip the gradients to the norm `max_norm` and return the norm before."""
    parameters = list(parameters)
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    if max_norm is not None:
        nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm
