"""Ranks: one process per device, started by torchrun; with a single process these operations do nothing."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from itertools import chain
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")

PATIENCE = timedelta(hours=3)
"""Time to wait for the first rank, which alone generates previews and validates. If a rank dies, the others
end at once."""

TRANSFER_BYTES = 2**28
"""Bytes of gradients sent together: enough to use the link, with little memory for their copy."""


@dataclass(frozen=True)
class Ranks:
    """This process among `size` that train together, each on its slice of every global batch."""

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """True for the rank that writes the run directory."""
        return self.rank == 0

    def sum(self, value: Tensor) -> Tensor:
        """The sum of `value` over all ranks."""
        if self.size > 1:
            value = value.clone()
            dist.all_reduce(value)
        return value

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Add up every gradient over the ranks, in place, many in one transfer.

        The loss is already divided by the weight of the whole update, so gradients are summed,
        not averaged. A rank whose slice was empty contributes zeros.
        """
        if self.size == 1:
            return
        for gradients in in_transfers(parameters):
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            dist.all_reduce(flat)
            pieces = torch.split(flat, [gradient.numel() for gradient in gradients])
            for gradient, piece in zip(gradients, pieces, strict=True):
                gradient.copy_(piece.view_as(gradient))

    def total(self, *values: float) -> tuple[float, ...]:
        """The sum of each value over all ranks, which must stop, save and preview at the same step."""
        if self.size == 1:
            return values
        # On the CPU, by gloo: a GPU collective would synchronize at every step.
        all_values = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(all_values)
        return tuple(cast("list[float]", all_values.tolist()))

    def gathered(self, values: list[T]) -> list[T]:
        """The values of all ranks, in their order."""
        if self.size == 1:
            return values
        of_ranks: list[list[T]] = [[] for _ in range(self.size)]
        dist.all_gather_object(of_ranks, values)
        return list(chain.from_iterable(of_ranks))

    def wait(self) -> None:
        """Return once every rank is here."""
        if self.size > 1:
            dist.barrier()


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


def join_ranks(device_type: str) -> Ranks:
    """Join the process group that torchrun's environment describes; alone without one."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return Ranks()
    if device_type == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    backend = "cpu:gloo,cuda:nccl" if device_type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=PATIENCE)
    return Ranks(dist.get_rank(), size)


def leave_ranks(ranks: Ranks) -> None:
    """Leave the process group."""
    if ranks.size > 1:
        dist.destroy_process_group()
