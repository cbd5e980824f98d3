"""Copies between host and device memory that run beside the computation."""

from __future__ import annotations

import logging
import weakref
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from flowloom.errors import ConfigError, Problem

_log = logging.getLogger("flowloom")


class Copies(Protocol):
    """Where streamed blocks and offloaded activations are kept, and how they reach the device."""

    def host_buffer(self, num_bytes: int) -> Tensor:
        """A buffer (num_bytes,) uint8 in host memory, fast to copy from."""
        ...

    def device_buffer(self, num_bytes: int) -> Tensor:
        """A buffer (num_bytes,) uint8 on the device."""
        ...

    def start(self, target: Tensor, source: Tensor) -> Any:
        """Begin to copy `source` to `target` once all computation that was started so far is done."""
        ...

    def wait(self, copy: Any) -> None:
        """Make computation that is started from now on wait for a copy that `start` returned."""
        ...


class CpuCopies:
    """Real copies within host memory: on a CPU they save nothing and prove that streaming is correct."""

    def host_buffer(self, num_bytes: int) -> Tensor:
        return torch.empty(num_bytes, dtype=torch.uint8)

    device_buffer = host_buffer

    def start(self, target: Tensor, source: Tensor) -> None:
        target.copy_(source)

    def wait(self, copy: None) -> None:
        pass


class CudaCopies:
    """Copies from page-locked memory in a separate stream."""

    def __init__(self, device: torch.device):
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def host_buffer(self, num_bytes: int) -> Tensor:
        return page_locked(num_bytes)

    def device_buffer(self, num_bytes: int) -> Tensor:
        return torch.empty(num_bytes, dtype=torch.uint8, device=self._device)

    def start(self, target: Tensor, source: Tensor) -> torch.Event:
        self._stream.wait_event(torch.cuda.current_stream(self._device).record_event())
        with torch.cuda.stream(self._stream):
            target.copy_(source, non_blocking=True)
        return self._stream.record_event()

    def wait(self, copy: torch.Event) -> None:
        torch.cuda.current_stream(self._device).wait_event(copy)


def copies_to(device: torch.device, key: str = "memory.streamed_blocks") -> Copies:
    """The copies to and from `device`, as the setting `key` needs them.

    Raises:
        ConfigError: `device` shares its memory with the host.
    """
    if device.type == "mps":
        message = "saves nothing on MPS, which shares its memory with the CPU. Remove it."
        raise ConfigError("the configuration", [Problem(key, message)])
    return CudaCopies(device) if device.type == "cuda" else CpuCopies()


def page_locked(num_bytes: int) -> Tensor:
    """A buffer (num_bytes,) uint8 that CUDA copies from and to by itself.

    Page-locked in place: torch's own allocator rounds up to the next power of two.
    """
    buffer = torch.empty(num_bytes, dtype=torch.uint8)
    runtime = cast("Any", torch.cuda.cudart())
    address = buffer.data_ptr()
    status = int(runtime.cudaHostRegister(address, num_bytes, 0))
    if status:
        _log.warning("%s bytes of host memory cannot be page-locked: copies are slower.", f"{num_bytes:,}")
    else:
        weakref.finalize(buffer.untyped_storage(), runtime.cudaHostUnregister, address)
    return buffer
