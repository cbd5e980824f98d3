"""AdamW with 8-bit, 4-bit or float8 states, by torchao (4 bits: Li et al. 2023, arXiv:2309.01507)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from flowloom.errors import ConfigError, Problem
from flowloom.import_warnings import quiet_imports
from flowloom.optimizers.base import AdamSettings, OptimizerSpec

if TYPE_CHECKING:
    import torch


class AdamWLowBit(AdamSettings, OptimizerSpec):
    """AdamW with small states, on every device; bf16 weights are rounded stochastically."""

    kind: Literal["adamw_lowbit"] = "adamw_lowbit"
    bits: Literal[8, 4, "fp8"] = 8
    """Size of the two moments; `fp8` needs CUDA of compute capability 8.9, or a CPU."""

    def build(self, groups: list[dict[str, object]], lr: float) -> torch.optim.Optimizer:
        try:
            with quiet_imports():
                from flowloom.optimizers.updates import lowbit
        except ImportError as error:
            message = (
                f"adamw_lowbit: torchao cannot be imported ({error}). pip install torchao, or use adamw."
            )
            raise ConfigError("optimizer", [Problem("optimizer.kind", message)]) from error
        if self.bits == "fp8" and not lowbit.has_float8(groups):
            message = "this device has no float8; bits 8 takes the same memory."
            raise ConfigError("optimizer", [Problem("optimizer.bits", message)])
        return lowbit.KINDS[self.bits](
            groups, lr=lr, betas=self.betas, eps=self.eps, bf16_stochastic_round=True
        )
