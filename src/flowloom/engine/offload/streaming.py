"""Block streaming: weights stay in host memory; each block's are copied to the device before it runs.

A ring of device buffers holds the block that computes and the next one, which is copied meanwhile: forwards
in the forward pass, backwards where blocks recompute in the backward pass. Streamed blocks must recompute:
then no saved activation refers to a buffer that another block overwrites. Weights are never copied back:
those that are trained are updated in host memory, from gradients that are copied there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from flowloom.engine.offload.copies import Copies, copies_to

ALIGNMENT = 256
"""Of each tensor in a buffer, in bytes: as CUDA's allocator aligns them."""
RING_SIZE = 2


def stream_blocks(model: nn.Module, blocks: Sequence[nn.Module], device: torch.device) -> BlockStreamer:
    """Stream `blocks` of `model`, which is in host memory; everything else moves to `device`."""
    streamed = {id(weight) for block in blocks for weight in block.parameters()}
    for module in model.modules():
        for weight in module.parameters(recurse=False):
            if id(weight) not in streamed:
                weight.data = weight.data.to(device)
            elif quant_state := getattr(weight, "quant_state", None):
                quant_state.to(device)  # scales of nf4, small and not parameters
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))
    return BlockStreamer(blocks, device, copies_to(device))


class BlockStreamer:
    """Streams the weights of `blocks`, which run in this order.

    While a block's weights are not on the device, its parameters refer to host memory: they can always be
    read. After `release` they can be written to, until a block runs; new tensors in their place need `adopt`.
    """

    streams_trained = False
    """Stream trained weights too, to be updated in host memory; otherwise they stay on the device."""

    def __init__(
        self, blocks: Sequence[nn.Module], device: torch.device, copies: Copies, ring_size: int = RING_SIZE
    ):
        self._blocks = [_HostBlock(block, device, copies) for block in blocks]
        self._copies = copies
        self._ring: list[_Slot] = []
        self._ring_size = min(ring_size, len(blocks))
        for index, block in enumerate(blocks):
            block.register_forward_pre_hook(partial(self._before, index))

    @property
    def host_bytes(self) -> int:
        """Bytes of all streamed weights."""
        return sum(block.num_bytes for block in self._blocks)

    @property
    def device_bytes(self) -> int:
        """Bytes of the ring."""
        return sum(slot.buffer.nbytes for slot in self._ring)

    def adopt(self) -> None:
        """Move the blocks' weights to host memory; trained ones that are not streamed to the device."""
        self.release()
        for block in self._blocks:
            block.pack(with_trained=self.streams_trained)
        largest = max(block.num_bytes for block in self._blocks)
        if not self._ring or self._ring[0].buffer.nbytes != largest:
            self._ring = []  # freed before the new buffers are made
            self._ring = [_Slot(self._copies.device_buffer(largest)) for _ in range(self._ring_size)]

    def release(self) -> None:
        """Let every parameter refer to host memory."""
        for slot in self._ring:
            self._evict(slot)

    def host_places(self) -> dict[int, Tensor]:
        """The host memory of each streamed weight, by the weight's id; a new one after each `adopt`."""
        return {key: place for block in self._blocks for key, place in block.places()}

    def _before(self, index: int, *_: object) -> None:
        """Wait for a block's weights when it is about to run, and begin to copy those of the next."""
        slot = self._slot_of(index) or self._start(index)
        self._copies.wait(slot.copy)
        self._blocks[index].refer_to(slot.buffer)
        # The last used one is last: the first is the next to be replaced.
        self._ring.remove(slot)
        self._ring.append(slot)
        following = self._after(index)
        if following is not None and self._ring_size > 1 and not self._slot_of(following):
            self._start(following)

    def _after(self, index: int) -> int | None:
        """The block that will run after `index`; None if that is not known, or it is the same."""
        graph_task = torch._C._current_graph_task_id()  # pyright: ignore[reportPrivateUsage]
        if graph_task != -1:  # in a backward pass: this run is a recomputation
            return index - 1 if index > 0 else None
        if index + 1 < len(self._blocks):
            return index + 1
        # Without gradients the next pass begins with the first block; with them, this block recomputes next.
        return None if torch.is_grad_enabled() else 0

    def _slot_of(self, index: int) -> _Slot | None:
        return next((slot for slot in self._ring if slot.block == index), None)

    def _start(self, index: int) -> _Slot:
        slot = self._ring[0]
        self._evict(slot)
        block = self._blocks[index]
        slot.block = index
        slot.copy = self._copies.start(slot.buffer[: block.num_bytes], block.host)
        # Not replaced while it is on its way, although it has not been used yet.
        self._ring.remove(slot)
        self._ring.append(slot)
        return slot

    def _evict(self, slot: _Slot) -> None:
        if slot.block is not None:
            self._blocks[slot.block].refer_to(self._blocks[slot.block].host)
            slot.block = None


@dataclass(eq=False)
class _Slot:
    """A device buffer, and the block in it or on its way to it."""

    buffer: Tensor
    block: int | None = None
    copy: Any = None


class _HostBlock:
    """A block and its streamed weights, in one flat host buffer."""

    def __init__(self, module: nn.Module, device: torch.device, copies: Copies):
        self._module, self._device, self._copies = module, device, copies
        self._weights: list[nn.Parameter] = []
        self._layout: list[tuple[int, torch.dtype, torch.Size]] = []
        self.host = torch.empty(0, dtype=torch.uint8)

    @property
    def num_bytes(self) -> int:
        return self.host.nbytes

    def pack(self, *, with_trained: bool) -> None:
        """Take streamed weights that are elsewhere into the host buffer."""
        weights = list(self._module.parameters())
        resident = [] if with_trained else [weight for weight in weights if weight.requires_grad]
        for weight in resident:
            weight.data = weight.data.to(self._device)
        self._weights = [weight for weight in weights if with_trained or not weight.requires_grad]
        layout = [(id(weight), weight.dtype, weight.shape) for weight in self._weights]
        if layout != self._layout:
            self.host = self._copies.host_buffer(sum(_aligned(weight.nbytes) for weight in self._weights))
            self._layout = layout
        for weight, view in zip(self._weights, self._views(self.host), strict=True):
            if weight.data_ptr() != view.data_ptr():
                weight.data = view.copy_(weight.data)

    def places(self) -> Iterator[tuple[int, Tensor]]:
        """Each weight's id and its part of the host buffer."""
        return zip(map(id, self._weights), self._views(self.host), strict=True)

    def refer_to(self, buffer: Tensor) -> None:
        """Let the weights be those in `buffer`, which has the layout of the host's."""
        for weight, view in zip(self._weights, self._views(buffer), strict=True):
            weight.data = view

    def _views(self, buffer: Tensor) -> Iterator[Tensor]:
        start = 0
        for weight in self._weights:
            yield buffer[start : start + weight.nbytes].view(weight.dtype).view(weight.shape)
            start += _aligned(weight.nbytes)


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // ALIGNMENT) * ALIGNMENT
