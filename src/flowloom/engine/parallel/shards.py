"""The interface of weights that are sharded over the ranks; the engine knows no other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from flowloom.engine.parallel.gradients import Gradients


class Shards(Protocol):
    """The weights of a network that is sharded over the ranks; names are those of its parameters.

    Optimizers and averages see plain tensors, the parts of this rank.
    """

    @property
    def files(self) -> FileShards | None:
        """These shards if each rank writes its parts of a checkpoint; None: the first writes those of all."""
        ...

    def parts(self, weights: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
        """This rank's part of each weight, sharing its memory."""
        ...

    def connect(
        self,
        trained: Mapping[str, nn.Parameter],
        parts: Mapping[str, nn.Parameter],
        optimizer: torch.optim.Optimizer,
    ) -> tuple[Gradients, torch.optim.Optimizer]:
        """The gradients of the weights in `trained`, and what replaces the `optimizer` of their `parts`."""
        ...

    def local(self, tensor: Tensor) -> Tensor:
        """This rank's part of a weight or its gradient."""
        ...

    def whole(self, weight: nn.Parameter, part: Tensor) -> Tensor:
        """All parts of a tensor with the shape of `weight`, on the CPU. Called by all ranks at once."""
        ...

    def joined(self, tensor: Tensor) -> Tensor:
        """All parts of a sharded tensor, on the CPU. Called by all ranks at once."""
        ...

    def part_of(self, weight: nn.Parameter, whole: Tensor) -> Tensor:
        """This rank's part of a tensor with the shape of `weight`, in the number format of `whole`."""
        ...

    def reshard(self) -> None:
        """Free weights that are gathered from all ranks."""
        ...

    def renew(self) -> None:
        """Take over which weights are trained now, and loaded weights. Called by all ranks at once."""
        ...


class FileShards(Shards, Protocol):
    """Shards of which each rank writes its parts of a checkpoint."""

    def placed(self, weight: nn.Parameter, part: Tensor) -> Tensor:
        """A DTensor with the shape of `weight`, of which this rank has `part`, on the CPU."""
        ...
