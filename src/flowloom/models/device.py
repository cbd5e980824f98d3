"""The device that networks run on."""

from __future__ import annotations

import torch

from flowloom.errors import ConfigError, Problem


def choose_device(wanted: str, key: str = "parallel.device") -> torch.device:
    """The device that `key` of the configuration names; `auto` is CUDA, else MPS, else the CPU.

    Raises:
        ConfigError: there is no such device.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted == "auto":
        wanted = next(name for name, is_there in available.items() if is_there)
    if not available[wanted]:
        hint = f"set {key} to auto, or install a torch build with it"
        raise ConfigError("the configuration", [Problem(key, f"no {wanted} device here: {hint}.")])
    return torch.device(wanted, torch.cuda.current_device()) if wanted == "cuda" else torch.device(wanted)


def encoder_dtype(device: torch.device) -> torch.dtype:
    """The number format of the encoders on `device`."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def sent(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """`tensor` on `device`; from pinned memory, CUDA copies without waiting for its computation."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
