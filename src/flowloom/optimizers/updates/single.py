"""Updates of one weight at a time; AdamW on the host converts gradients and results in the cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

CHUNK = 2**19
"""Elements of a weight that each thread updates at a time: with their moments they stay in the cache."""


class SingleUpdates:
    """Updates one weight of an optimizer at a time, as its `step` would update it among the others."""

    def __init__(self, optimizer: torch.optim.Optimizer):
        self._optimizer = optimizer
        self._groups: dict[int, dict[str, Any]] = {
            id(weight): group for group in optimizer.param_groups for weight in group["params"]
        }
        self._scratch = torch.empty(0)

    def step(self, weight: Tensor) -> None:
        """Update `weight`, which has its gradient, and drop the gradient."""
        groups = self._optimizer.param_groups
        self._optimizer.param_groups = [{**self._groups[id(weight)], "params": [weight]}]
        try:
            self._optimizer.step()
        finally:
            self._optimizer.param_groups = groups
        weight.grad = None

    @torch.no_grad()
    def step_from(self, weight: Tensor, gradient: Tensor, target: Tensor) -> None:
        """Update `weight`, in host memory, from `gradient`, and write its new value to `target`.

        All have one shape and are contiguous; gradient and target may be of another dtype.
        """
        if type(self._optimizer) is torch.optim.AdamW and weight.dtype is torch.float32:
            self._step_in_chunks(weight, gradient, target)
            return
        weight.grad = gradient.to(weight.dtype)
        self.step(weight)
        target.copy_(weight)

    def _step_in_chunks(self, weight: Tensor, gradient: Tensor, target: Tensor) -> None:
        """Torch's fused kernel on chunks: conversions then read and write the cache, not memory."""
        group, state = self._groups[id(weight)], self._optimizer.state[weight]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(weight), torch.zeros_like(weight)
        state["step"] += 1
        beta1, beta2 = group["betas"]
        settings: dict[str, Any] = {key: group[key] for key in ("eps", "weight_decay", "amsgrad", "maximize")}
        settings |= {"lr": float(group["lr"]), "beta1": beta1, "beta2": beta2}
        size = CHUNK * torch.get_num_threads()
        if gradient.dtype != weight.dtype and self._scratch.numel() < size:
            self._scratch = torch.empty(size)
        tensors = (weight, state["exp_avg"], state["exp_avg_sq"], gradient, target)
        chunks = (cast("Sequence[Tensor]", tensor.view(-1).split(size)) for tensor in tensors)
        for chunk, mean, square, arrived, updated in zip(*chunks, strict=True):
            same = arrived.dtype == chunk.dtype
            incoming = arrived if same else self._scratch[: arrived.numel()].copy_(arrived)
            torch._fused_adamw_(  # pyright: ignore[reportPrivateUsage]
                [chunk], [incoming], [mean], [square], [], [state["step"]], **settings
            )
            updated.copy_(chunk)
