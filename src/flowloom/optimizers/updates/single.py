"""Updates of one weight at a time; AdamW on the host converts gradients and results in the cache."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

CHUNK = 2**19
"""Elements that a thread updates at a time: few enough for the cache, many enough to hide Python's time."""


class SingleUpdates:
    """Updates one weight of an optimizer at a time, as its `step` would update it among the others."""

    def __init__(self, optimizer: torch.optim.Optimizer):
        self._optimizer = optimizer
        self._groups: dict[int, dict[str, Any]] = {
            id(weight): group for group in optimizer.param_groups for weight in group["params"]
        }
        self._threads: ThreadPoolExecutor | None = None

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
        """Torch's fused kernel on chunks: conversions then read and write the cache, not memory.

        Each thread has its own part of the weight; within torch's operators it would wait for the others.
        """
        group, state = self._groups[id(weight)], self._optimizer.state[weight]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(weight), torch.zeros_like(weight)
        state["step"] += 1
        beta1, beta2 = group["betas"]
        settings: dict[str, Any] = {key: group[key] for key in ("eps", "weight_decay", "amsgrad", "maximize")}
        settings |= {"lr": float(group["lr"]), "beta1": beta1, "beta2": beta2}
        update = partial(_update_chunks, step=state["step"], settings=settings)
        tensors = [
            each.view(-1)
            for each in (weight.detach(), state["exp_avg"], state["exp_avg_sq"], gradient, target)
        ]
        threads = torch.get_num_threads()
        chunks = -(-weight.numel() // CHUNK)
        if threads == 1 or chunks == 1:
            update(tensors)
            return
        self._threads = self._threads or _single_threads(threads)
        size = -(-chunks // threads) * CHUNK
        parts = zip(*(cast("Sequence[Tensor]", each.split(size)) for each in tensors), strict=True)
        list(self._threads.map(update, parts))


@torch.no_grad()
def _update_chunks(tensors: Sequence[Tensor], step: Tensor, settings: Mapping[str, Any]) -> None:
    """Update a flat weight with its two moments from a gradient, and write it to a target."""
    scratch = torch.empty(0)
    chunks = (cast("Sequence[Tensor]", each.split(CHUNK)) for each in tensors)
    for weight, mean, square, arrived, target in zip(*chunks, strict=True):
        gradient = arrived
        if arrived.dtype != weight.dtype:
            scratch = scratch if scratch.numel() else torch.empty_like(weight)
            gradient = scratch[: arrived.numel()].copy_(arrived)
        torch._fused_adamw_(  # pyright: ignore[reportPrivateUsage]
            [weight], [gradient], [mean], [square], [], [step], **settings
        )
        target.copy_(weight)


def _single_threads(count: int) -> ThreadPoolExecutor:
    """Threads in each of which torch computes on that thread alone."""
    started = threading.Barrier(count)
    pool = ThreadPoolExecutor(count, "host update", torch.set_num_threads, (1,))
    for waiting in [pool.submit(started.wait) for _ in range(count)]:
        waiting.result()
    # torch lets threads that begin later use the number that was set last, in any thread.
    torch.set_num_threads(count)
    return pool
