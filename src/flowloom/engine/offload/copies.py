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
    """Where streamed blocks, activations and gradients are kept on the host, and how they are copied."""

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

    def start_back(self, target: Tensor, source: Tensor) -> Any:
        """Begin to copy `source` to the host once all computation that was started so far is done.

        The caller keeps `source` until the copy has arrived.
        """
        ...

    def arrive(self, copy: Any) -> None:
        """Return when a copy in either direction is complete."""
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

    def start_back(self, target: Tensor, source: Tensor) -> None:
        target.copy_(source)

    def arrive(self, copy: None) -> None:
        pass


class CudaCopies:
    """Copies from and to page-locked memory, in a separate stream for each direction."""

    def __init__(self, device: torch.device):
        self._device = device
        self._stream, self._back = torch.cuda.Stream(device), torch.cuda.Stream(device)

    def host_buffer(self, num_bytes: int) -> Tensor:
        return page_locked(num_bytes)

    def device_buffer(self, num_bytes: int) -> Tensor:
        return torch.empty(num_bytes, dtype=torch.uint8, device=self._device)

    def start(self, target: Tensor, source: Tensor) -> torch.Event:
        return self._copy(self._stream, target, source)

    def wait(self, copy: torch.Event) -> None:
        torch.cuda.current_stream(self._device).wait_event(copy)

    def start_back(self, target: Tensor, source: Tensor) -> torch.Event:
        return self._copy(self._back, target, source)

    def arrive(self, copy: torch.Event) -> None:
        copy.synchronize()

    def _copy(self, stream: torch.cuda.Stream, target: Tensor, source: Tensor) -> torch.Event:
        stream.wait_event(torch.cuda.current_stream(self._device).record_event())
        with torch.cuda.stream(stream):
            target.copy_(source, non_blocking=True)
        return stream.record_event()


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
