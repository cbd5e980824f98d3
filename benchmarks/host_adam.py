"""Update 198 million weights on the host, bf16 gradients: speed of torch's AdamW, 0.9 of DeepSpeed's."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.stream import median_of
from benchmarks.timing import Measured
from flowloom.import_warnings import quiet_imports
from flowloom.optimizers.updates.single import SingleUpdates

TARGETS = {"torch": 1.0, "deepspeed": 0.9}
SHAPE, COUNT = (3072, 21504), 3
"""The largest weight of one of Chroma's single blocks."""
SETTINGS: dict[str, Any] = {"lr": 1e-4, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01}


class Work(NamedTuple):
    """Weights with their moments, gradients as they arrive from a device, and targets on their way to it."""

    weights: list[nn.Parameter]
    states: list[dict[str, Tensor]]
    gradients: list[Tensor]
    targets: list[Tensor]


def run() -> Measured:
    """The smaller of two rivals' time over ours and its target; they convert gradients and weights as we do.

    float32 gradients, which need no conversion, are in the details.
    """
    rivals: dict[str, Callable[..., torch.optim.Optimizer]] = {"torch": torch_adam}
    detail: dict[str, Any] = {"threads": torch.get_num_threads()}
    if deepspeed := deepspeed_adam():
        rivals["deepspeed"] = deepspeed
    else:
        detail["deepspeed"] = (
            "skipped: not installed (pip install --no-deps deepspeed ninja py-cpuinfo hjson)"
        )
    correct, reached = True, []
    for dtype, name in ((torch.bfloat16, "bf16"), (torch.float32, "fp32")):
        results = [results_of(kind, dtype) for kind in (None, *rivals.values())]
        correct &= all(torch.allclose(other, results[0], rtol=1e-5, atol=1e-8) for other in results[1:])
        correct &= torch.equal(results[0], results[1])
        work = make_work(SHAPE, COUNT, dtype)
        ours, *theirs = median_of(our_update(work), *(their_update(work, kind) for kind in rivals.values()))
        detail[f"{name}_s"] = ours
        for rival, seconds in zip(rivals, theirs, strict=True):
            detail[f"{name}_{rival}"] = seconds / ours
            reached += [seconds / ours / TARGETS[rival]] if dtype is torch.bfloat16 else []
    return Measured(ratio=min(reached), target=1.0, correct=correct, detail=detail)


def make_work(shape: tuple[int, ...], count: int, dtype: torch.dtype) -> Work:
    """Random weights and gradients."""
    draw = torch.Generator().manual_seed(0)
    weights = [nn.Parameter(torch.randn(shape, generator=draw) * 0.02) for _ in range(count)]
    states = [
        {"exp_avg": torch.zeros(shape), "exp_avg_sq": torch.zeros(shape), "step": torch.zeros(())}
        for _ in weights
    ]
    gradients = [(torch.randn(shape, generator=draw) * 1e-3).to(dtype) for _ in range(count)]
    return Work(weights, states, gradients, [torch.empty(shape, dtype=dtype) for _ in range(count)])


def results_of(kind: Callable[..., torch.optim.Optimizer] | None, dtype: torch.dtype) -> Tensor:
    """The weights after two updates of a small work by us, or by a rival."""
    work = make_work((1000, 1501), 1, dtype)
    update = their_update(work, kind) if kind else our_update(work)
    for _ in range(2):
        update()
    assert torch.equal(work.targets[0], work.weights[0].to(dtype))
    return work.weights[0].detach()


def our_update(work: Work) -> Callable[[], None]:
    """Each weight from its gradient to its target, as the engine does it."""
    optimizer = torch_adam(work.weights)
    take_over(optimizer, work)
    updates = SingleUpdates(optimizer)

    def update() -> None:
        for weight, gradient, target in zip(work.weights, work.gradients, work.targets, strict=True):
            updates.step_from(weight, gradient, target)

    return update


def their_update(work: Work, kind: Callable[..., torch.optim.Optimizer]) -> Callable[[], None]:
    """Gradients converted to float32, one step, weights converted."""
    optimizer = kind(work.weights)
    take_over(optimizer, work)
    converted = [torch.empty_like(weight) for weight in work.weights]

    @torch.no_grad()
    def update() -> None:
        for weight, gradient, room in zip(work.weights, work.gradients, converted, strict=True):
            weight.grad = gradient if gradient.dtype is weight.dtype else room.copy_(gradient)
        optimizer.step()
        for weight, target in zip(work.weights, work.targets, strict=True):
            target.copy_(weight)
            weight.grad = None

    return update


def take_over(optimizer: torch.optim.Optimizer, work: Work) -> None:
    """Let all contenders work on the same moments, in a state of the optimizer's own kind."""
    for weight, state in zip(work.weights, work.states, strict=True):
        optimizer.state[weight] = {
            **state,
            "step": 0 if "DeepSpeed" in type(optimizer).__name__ else torch.zeros(()),
        }


def torch_adam(weights: list[nn.Parameter]) -> torch.optim.Optimizer:
    """torch's fused kernel."""
    return torch.optim.AdamW(weights, fused=True, **SETTINGS)


def deepspeed_adam() -> Callable[[list[nn.Parameter]], torch.optim.Optimizer] | None:
    """DeepSpeed's operator, which its first use compiles; None without the package."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    try:
        with quiet_imports():
            from deepspeed.ops.adam import DeepSpeedCPUAdam
    except ImportError:
        return None
    return lambda weights: DeepSpeedCPUAdam(weights, adamw_mode=True, **SETTINGS)
