"""`optimizer.device: cpu`: gradients move to the host, the update is made there, new weights move back.

With `memory.fused_backward`, where block k + 1 comes before block k in the backward pass:

    device   block k + 1 | block k                | block k - 1
    copies               | gradients of k + 1     | gradients of k, weights of k + 1
    host                 |     update of k + 1    |     update of k

A gradient is copied to the host when it is complete, through a ring of page-locked buffers, and freed on the
device. Without fused backward the host adds up the gradients of all micro-batches in full precision, and the
update follows the backward pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from flowloom.engine.offload.copies import Copies
from flowloom.engine.offload.early import EarlyGradients
from flowloom.engine.offload.staging import Staging
from flowloom.engine.offload.streaming import BlockStreamer
from flowloom.engine.parallel.gradients import gradients_of
from flowloom.engine.parallel.ranks import Ranks
from flowloom.optimizers.updates.single import SingleUpdates


class HostSetup(NamedTuple):
    """Settings and connections of a run's host updates."""

    copies: Copies
    ranks: Ranks
    streamer: BlockStreamer | None
    is_fused: bool
    """Update each weight as soon as its gradient has arrived."""


@dataclass(eq=False)
class _HostWeight:
    """A weight on the device and its copy on the host."""

    weight: nn.Parameter
    copy: nn.Parameter
    """Updated by the optimizer."""
    streamed: Tensor | None
    """The host memory that the weight is streamed from."""
    sum: Tensor | None = None
    """Room for its gradient."""


class HostGradients(EarlyGradients):
    """The gradients of weights that a host optimizer updates.

    Args:
        weights: on the device, by name.
        copies: of these weights, on the host, in the same order; `optimizer` updates them.
    """

    def __init__(
        self,
        weights: Mapping[str, nn.Parameter],
        copies: Mapping[str, nn.Parameter],
        optimizer: torch.optim.Optimizer,
        setup: HostSetup,
    ):
        super().__init__(list(weights.values()))
        self._copies, self._is_fused, self._streamer = setup.copies, setup.is_fused, setup.streamer
        places = setup.streamer.host_places() if setup.streamer else {}
        self._weights = [
            _HostWeight(weight, copies[name], places.get(id(weight))) for name, weight in weights.items()
        ]
        self._updates = SingleUpdates(optimizer)
        self._sums = gradients_of(setup.ranks, copies.values())
        # One thread: it waits for copies, so that the backward pass does not.
        self._worker = ThreadPoolExecutor(
            1, "host updates", torch.set_num_threads, (torch.get_num_threads(),)
        )
        largest = max(weight.nbytes for weight in weights.values())
        self._down: Staging[Future[None]] = Staging(setup.copies, largest, lambda job: job.result())
        self._up: Staging[object] = Staging(setup.copies, largest, setup.copies.arrive)

    def finish(self, max_norm: float | None) -> Tensor:
        """Wait for all gradients; without fused backward, sum them over the ranks and clip them."""
        self._down.drain()
        return self._total_norm() if self._is_fused else self._sums.finish(max_norm)

    def apply(self) -> None:
        """Update every weight that has a gradient, and wait until the device has all of them."""
        for each in self._weights:
            if each.copy.grad is not None:
                self._update(each, each.copy.grad)
                each.copy.grad = None
        self._up.drain()
        if self._streamer:
            self._streamer.release()  # the ring has weights from before the update

    def close(self) -> None:
        """Remove the hooks from the weights, and end the thread."""
        super().close()
        self._worker.shutdown()

    def _take(self, place: int, weight: Tensor) -> None:
        gradient, weight.grad = weight.grad, None
        assert gradient is not None
        if self._is_fused:
            self._note_norm(place, gradient)
        arrived = self._down.buffer(gradient, gradient.dtype)
        copy = self._copies.start_back(arrived, gradient)
        self._down.use(self._worker.submit(self._use, self._weights[place], arrived, copy, [gradient]))

    @torch.no_grad()
    def _use(self, each: _HostWeight, arrived: Tensor, copy: object, sources: list[Tensor]) -> None:
        """Update from a gradient, or add it to the sum, in the other thread."""
        self._copies.arrive(copy)
        sources.clear()
        if self._is_fused:
            self._update(each, arrived)
        elif each.copy.grad is not None:
            each.copy.grad.add_(arrived)
        else:
            if each.sum is None:
                each.sum = torch.empty_like(each.copy)
            each.copy.grad = each.sum.copy_(arrived)

    def _update(self, each: _HostWeight, gradient: Tensor) -> None:
        if each.streamed is not None:
            self._updates.step_from(each.copy, gradient, each.streamed)
            return
        updated = self._up.buffer(each.weight, each.weight.dtype)
        self._updates.step_from(each.copy, gradient, updated)
        self._up.use(self._copies.start(each.weight.data, updated))
