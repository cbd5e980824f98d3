"""torchao's low-bit AdamW, made to run without a compiler and to repeat itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torchao.optim import AdamW4bit, AdamW8bit, AdamWFp8


class _Repeatable(torch.optim.Optimizer):
    """Common part of all three; precedes torchao's class in the method resolution order."""

    def step(self, closure: Any = None) -> Any:
        """Update; the noise that rounds bf16 weights depends on the saved counts of updates alone.

        torchao compiles its update, which wants a C++ compiler on the CPU: there it runs as written.
        """
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            group["lr"] = torch.as_tensor(group["lr"], dtype=torch.float32)
        devices = {parameter.device for group in self.param_groups for parameter in group["params"]}
        cuda = [device for device in devices if device.type == "cuda"]
        with (
            torch.random.fork_rng(cuda),
            torch.compiler.set_stance("default" if cuda else "force_eager"),
        ):
            torch.manual_seed(max((int(state["step"]) for state in self.state.values()), default=0))
            super().step()
        return loss


class LowBit8(_Repeatable, AdamW8bit):
    """8 bits a moment, in blocks of 256."""


class LowBit4(_Repeatable, AdamW4bit):
    """4 bits a moment, in blocks of 128."""


class LowBitFp8(_Repeatable, AdamWFp8):
    """float8_e4m3 moments, in blocks of 256."""


KINDS: dict[int | str, Callable[..., Any]] = {8: LowBit8, 4: LowBit4, "fp8": LowBitFp8}


def has_float8(groups: list[dict[str, Any]]) -> bool:
    """True if the devices of all parameters support float8_e4m3: CPU, and CUDA from 8.9 on."""
    devices = {parameter.device for group in groups for parameter in group["params"]}
    return all(
        device.type == "cpu" or (device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9))
        for device in devices
    )
