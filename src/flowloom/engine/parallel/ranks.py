"""Ranks: one process per device, started by torchrun; with a single process these operations do nothing."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from itertools import chain
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from flowloom.errors import FlowloomError, RankError, one_line

T = TypeVar("T")

PATIENCE = timedelta(hours=3)
"""Time to wait for the first rank, which alone generates previews and validates. If a rank dies, the others
end at once."""

JOIN_PATIENCE = timedelta(minutes=10)
"""Time in which all ranks have to start."""


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

    def start_sum(self, value: Tensor) -> dist.Work:
        """Begin to replace `value` by its sum over all ranks; all ranks start their sums in one order."""
        return cast("dist.Work", dist.all_reduce(value, async_op=True))

    def total(self, *values: float) -> tuple[float, ...]:
        """The sum of each value over all ranks, which must stop, save and preview at the same step."""
        if self.size == 1:
            return values
        # On the CPU, by gloo: a GPU collective would synchronize at every step.
        all_values = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(all_values)
        return tuple(cast("list[float]", all_values.tolist()))

    def extremes(self, value: int) -> tuple[int, int]:
        """The smallest and the largest value of all ranks."""
        if self.size == 1:
            return value, value
        both = torch.tensor([-value, value])
        dist.all_reduce(both, dist.ReduceOp.MAX)
        return -int(both[0]), int(both[1])

    def from_first(self, make: Callable[[], T]) -> T:
        """The result of `make` on the first rank, or its error; on the others it is not called.

        Args:
            make: its result has tensors only on the CPU.
        """
        if self.size == 1:
            return make()
        made: list[Any] = [None, None]
        if self.is_first:
            try:
                made[0] = make()
            except FlowloomError as error:
                made[1] = error
        dist.broadcast_object_list(made, device=torch.device("cpu"))
        if made[1]:
            raise made[1]
        return made[0]

    def each_from_first(self, items: Callable[[], Iterable[T]]) -> Iterator[T]:
        """Every item that the first rank makes, on all ranks."""
        made = iter(items()) if self.is_first else iter(())
        while (item := self.from_first(lambda: next(made, None))) is not None:
            yield item

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


ALONE = Ranks()
"""A process that trains alone."""


def join_ranks(device_type: str, patience: timedelta = PATIENCE) -> Ranks:
    """Join the process group that torchrun's environment describes; alone without one.

    Args:
        patience: time to wait for other ranks in each operation.

    Raises:
        RankError: not all ranks joined within `JOIN_PATIENCE`.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return Ranks()
    if device_type == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    backend = "cpu:gloo,cuda:nccl" if device_type == "cuda" else "gloo"
    rank = int(os.environ["RANK"])
    dist.init_process_group(backend, store=_meet(rank, size), rank=rank, world_size=size, timeout=patience)
    return Ranks(rank, size)


def _meet(rank: int, size: int) -> dist.Store:
    """A store that all ranks have reached."""
    names = [f"joined/{number}" for number in range(size)]
    store: dist.Store | None = None
    try:
        store, _, _ = next(dist.rendezvous("env://", timeout=JOIN_PATIENCE))
        store.set(names[rank], "")
        store.wait(names, JOIN_PATIENCE)
    except dist.DistError as error:
        missing = [str(number) for number in range(size) if store and not store.check([names[number]])]
        reason = f"rank {', '.join(missing)} did not join" if missing else one_line(str(error))
        failure = RankError(
            f"Rank {rank} waited {JOIN_PATIENCE.total_seconds():g} s for all {size} ranks at "
            f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}: {reason}."
        )
        failure.hint = (
            "Start all machines with the same address, number of machines and ranks, and let no firewall "
            "be between them. Then resume the run."
        )
        raise failure from error
    return store


def leave_ranks(ranks: Ranks) -> None:
    """Leave the process group."""
    if ranks.size > 1:
        dist.destroy_process_group()
