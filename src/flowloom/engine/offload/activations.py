"""Activation offload: the inputs that recomputed blocks keep are in host memory until the backward pass.

An input is copied to the host while its block computes, and back while the block after it computes in the
backward pass. That of the last block stays on the device, where the backward pass begins.
"""

from __future__ import annotations

import weakref
from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from flowloom.engine.offload.copies import Copies


class ActivationOffload:
    """Keeps activations in host memory, in buffers that later steps use again."""

    def __init__(self, copies: Copies):
        self._copies = copies
        self._free: list[Tensor] = []
        """Host buffers that are not in use."""
        self._leaving: list[_Activation] = []
        """Those of the last block, on the device and on their way to the host."""
        self._last: weakref.ref[_Block] | None = None

    @contextmanager
    def keeping(self) -> Generator[None]:
        """Keep the activations that are saved inside in host memory: those of one block."""
        for activation in self._leaving:
            activation.leave()
        self._leaving = []
        block = _Block(self._last)
        self._last = weakref.ref(block)
        with saved_tensors_hooks(partial(self._pack, block), self._unpack):
            yield

    def _pack(self, block: _Block, tensor: Tensor) -> Tensor | _Activation:
        # Others are weights, or small and shared by all blocks.
        if not tensor.requires_grad or tensor.ndim != 3:
            return tensor
        activation = _Activation(tensor.detach(), block, self._copies, self._free)
        block.activations.append(weakref.ref(activation))
        self._leaving.append(activation)
        return activation

    def _unpack(self, kept: Tensor | _Activation) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        self._leaving = [activation for activation in self._leaving if activation is not kept]
        tensor = kept.on_device()
        before = kept.block.before and kept.block.before()
        for reference in before.activations if before else ():
            if activation := reference():
                activation.start_return()
        return tensor


class _Block:
    """The activations of one block in one forward pass."""

    def __init__(self, before: weakref.ref[_Block] | None):
        self.before = before
        """The block that ran before it; its backward pass is next."""
        self.activations: list[weakref.ref[_Activation]] = []


class _Activation:
    """An activation with its host buffer; the graph of the backward pass owns it."""

    def __init__(self, tensor: Tensor, block: _Block, copies: Copies, free: list[Tensor]):
        self.block = block
        self._copies, self._free = copies, free
        self._shape, self._dtype, self._num_bytes = tensor.shape, tensor.dtype, tensor.nbytes
        self._buffer = _take(free, tensor.nbytes, copies)
        self._original: Tensor | None = tensor
        """On the device; None once it has left."""
        self._departure: Any = copies.start(self._view(self._buffer), tensor)
        self._back: tuple[Tensor, Any] | None = None
        """A device tensor and the copy to it that has begun."""

    def leave(self) -> None:
        """Free the device's memory when the copy is done."""
        self._copies.wait(self._departure)
        self._departure = self._original = None

    def start_return(self) -> None:
        """Begin to copy it to the device, unless it is there or on its way."""
        if self._original is None and self._back is None:
            target = self._view(self._copies.device_buffer(self._num_bytes))
            self._back = target, self._copies.start(target, self._view(self._buffer))

    def on_device(self) -> Tensor:
        """The activation, for computation that begins after this call."""
        if self._original is not None:
            return self._original
        self.start_return()
        assert self._back
        (tensor, copy), self._back = self._back, None
        self._copies.wait(copy)
        return tensor

    def _view(self, buffer: Tensor) -> Tensor:
        return buffer[: self._num_bytes].view(self._dtype).view(self._shape)

    def __del__(self) -> None:
        if self._back:  # memory that a copy is about to write to must not be used again
            self._copies.wait(self._back[1])
        self._free.append(self._buffer)


def _take(free: list[Tensor], num_bytes: int, copies: Copies) -> Tensor:
    """The smallest sufficient buffer of `free`, or a new one in place of one that is too small."""
    free.sort(key=lambda buffer: buffer.nbytes)
    for i, buffer in enumerate(free):
        if buffer.nbytes >= num_bytes:
            return free.pop(i)
    if free:
        free.pop()
    return copies.host_buffer(num_bytes)
