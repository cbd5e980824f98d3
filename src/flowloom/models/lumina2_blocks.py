"""Recomputation of Lumina 2's refiners, which diffusers' network leaves out."""

from __future__ import annotations

from typing import Any

from torch import nn

from flowloom.nn.recompute import Recompute


def let_recompute(block: Any, recompute: Recompute) -> None:
    """Let `recompute` run `block` within the block's own call."""
    inside = _Inside(block)

    def forward(*inputs: Any) -> Any:
        return recompute(inside, *inputs)

    block.forward = forward


class _Inside(nn.Module):
    """A block by its computation, without the hooks of its call."""

    def __init__(self, block: Any):
        super().__init__()
        self.block, self._run = block, block.forward

    @property
    def recomputes_ffn(self) -> bool:
        """The block's own attribute, see `Recompute`."""
        return self.block.recomputes_ffn

    @recomputes_ffn.setter
    def recomputes_ffn(self, value: bool) -> None:
        self.block.recomputes_ffn = value

    def forward(self, *inputs: Any) -> Any:
        return self._run(*inputs)
