"""AdamW with block-wise 8-bit states (Dettmers et al. 2021, arXiv:2110.02861), by bitsandbytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from flowloom.errors import ConfigError, Problem
from flowloom.import_warnings import quiet_imports
from flowloom.optimizers.base import AdamSettings, OptimizerSpec

if TYPE_CHECKING:
    import torch


class AdamW8bit(AdamSettings, OptimizerSpec):
    """AdamW with 8-bit states: 2 bytes a parameter in place of 8. On CUDA, XPU and CPU."""

    kind: Literal["adamw8bit"] = "adamw8bit"
    min_8bit_size: int = 4096
    """Smaller parameters keep float32 states."""

    def build(self, groups: list[dict[str, object]], lr: float) -> torch.optim.Optimizer:
        device_types: set[str] = {parameter.device.type for group in groups for parameter in group["params"]}  # type: ignore[attr-defined]
        if device_types - {"cuda", "xpu", "cpu"}:
            raise _cannot(f"bitsandbytes has no 8-bit AdamW for {', '.join(sorted(device_types))}")
        try:
            with quiet_imports():
                from bitsandbytes.optim.adamw import AdamW8bit as BlockwiseAdamW
        except ImportError as error:
            raise _cannot(f"bitsandbytes cannot be imported ({error}); pip install bitsandbytes") from error
        return BlockwiseAdamW(groups, lr=lr, betas=self.betas, eps=self.eps, min_8bit_size=self.min_8bit_size)


def _cannot(reason: str) -> ConfigError:
    message = f"adamw8bit: {reason}. Or use adamw_lowbit, which is torchao's and runs everywhere."
    return ConfigError("optimizer", [Problem("optimizer.kind", message)])
