"""Recomputation: blocks that compute activations again in the backward pass instead of keeping them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils import checkpoint


class Recompute:
    """Runs the blocks of a network: those that need gradients recompute, the first ones as a whole.

    Blocks below the lowest trained parameter keep no activations in any case.
    """

    def __init__(
        self,
        blocks: int = 0,
        ffn: int = 0,
        *,
        keeping: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ):
        """
        Args:
            blocks: number of blocks that keep only their inputs.
            ffn: number of further blocks that recompute their feed-forward part.
            keeping: entered around each block that keeps only its inputs, such as hooks on saved tensors.
        """
        self.blocks, self.ffn, self.keeping = blocks, ffn, keeping
        self._num_run = 0

    def start(self) -> None:
        """Begin a forward pass: count from its first block again."""
        self._num_run = 0

    def __call__(self, block: Any, *inputs: Any) -> Any:
        """The output of `block`, which has an attribute `recomputes_ffn` that it follows."""
        if not torch.is_grad_enabled() or not _needs_gradients(block, inputs):
            return block(*inputs)
        self._num_run += 1
        is_whole = self._num_run <= self.blocks
        block.recomputes_ffn = not is_whole and self._num_run <= self.blocks + self.ffn
        if not is_whole:
            return block(*inputs)
        with self.keeping():
            return recomputed(block, *inputs)


def recomputed(function: Callable[..., Any], *inputs: Any) -> Any:
    """The result of `function`, of which only `inputs` are kept; it must not draw random numbers."""
    settings: dict[str, Any] = {"preserve_rng_state": False, "determinism_check": "none"}
    return cast("Any", checkpoint.checkpoint(function, *inputs, use_reentrant=False, **settings))


def _needs_gradients(block: nn.Module, inputs: Iterable[Any]) -> bool:
    given = (x for x in inputs if isinstance(x, Tensor))
    return any(tensor.requires_grad for tensor in chain(given, block.parameters()))
