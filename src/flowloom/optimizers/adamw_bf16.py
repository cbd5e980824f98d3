"""AdamW for bf16 weights with stochastic rounding (Zamirai et al. 2020, arXiv:2010.06192)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from flowloom.optimizers.base import AdamSettings, OptimizerSpec

if TYPE_CHECKING:
    import torch


class AdamWBf16(AdamSettings, OptimizerSpec):
    """AdamW on bf16 weights without float32 copies: 6 bytes a parameter, and 2 of gradient."""

    is_elementwise: ClassVar[bool] = True

    kind: Literal["adamw_bf16"] = "adamw_bf16"
    moments: Literal["bf16", "fp32"] = "bf16"
    """Number format of the two moments; bf16 ones are rounded stochastically, as the weights are."""

    def build(self, groups: list[dict[str, object]], lr: float) -> torch.optim.Optimizer:
        import torch

        from flowloom.optimizers.updates.stochastic import StochasticAdamW

        moments_dtype = torch.bfloat16 if self.moments == "bf16" else torch.float32
        return StochasticAdamW(groups, lr, self.betas, self.eps, moments_dtype)
