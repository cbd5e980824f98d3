"""AdamW (Loshchilov & Hutter 2017, arXiv:1711.05101), torch's fused kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from flowloom.parts.optimizers.base import OptimizerSpec

if TYPE_CHECKING:
    import torch


class AdamW(OptimizerSpec):
    """AdamW with float32 states, fused."""

    kind: Literal["adamw"] = "adamw"
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the first and second moment."""
    eps: float = 1e-8
    """Added to the root of the second moment."""

    def build(self, groups: list[dict[str, object]], lr: float) -> torch.optim.Optimizer:
        import torch

        # foreach, torch's default, is the slowest of the three on a CPU (docs: perf C11).
        return torch.optim.AdamW(groups, lr=lr, betas=self.betas, eps=self.eps, fused=True)
