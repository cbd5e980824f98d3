"""AdamW (Loshchilov & Hutter 2017, arXiv:1711.05101), torch's fused kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from flowloom.optimizers.base import AdamSettings, OptimizerSpec

if TYPE_CHECKING:
    import torch


class AdamW(AdamSettings, OptimizerSpec):
    """AdamW with float32 states, fused."""

    is_elementwise: ClassVar[bool] = True

    kind: Literal["adamw"] = "adamw"

    def build(self, groups: list[dict[str, object]], lr: float) -> torch.optim.Optimizer:
        import torch

        # foreach, torch's default, is the slowest of the three on a CPU.
        return torch.optim.AdamW(groups, lr=lr, betas=self.betas, eps=self.eps, fused=True)
