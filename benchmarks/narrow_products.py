"""int8 and fp8 products of a frozen layer of Chroma's, forward and input gradient, against bfloat16 (GPU)."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu import median_seconds
from benchmarks.timing import Measured
from flowloom.errors import ConfigError
from flowloom.models.quantized import Products, check_products
from flowloom.models.scaled_linear import Float8ProductLinear, Int8ProductLinear, ScaledLinear

TOKENS, COLUMNS, ROWS = 4608, 3072, 12288
"""An image of 1024 pixels and 512 text tokens in the first layer of an MLP."""
REPEATS, TOLERANCE = 20, 0.05
KINDS: dict[Products, type[ScaledLinear]] = {"int8": Int8ProductLinear, "fp8": Float8ProductLinear}


def run() -> Measured:
    """Seconds of bfloat16 over the faster of both; correct when outputs and gradients are close."""
    if not torch.cuda.is_available():
        return Measured(ratio=None, target=1.3, correct=True, detail={"skipped": "no accelerator"})
    return measure(torch.device("cuda"), (TOKENS, COLUMNS, ROWS), torch.compile)


def measure(device: torch.device, sizes: tuple[int, int, int], compiled: Any) -> Measured:
    """The same for tokens, columns and rows of other `sizes`; layers are timed as `compiled` returns them."""
    torch.manual_seed(0)
    tokens, columns, rows = sizes
    wide = nn.Linear(columns, rows, device=device, dtype=torch.bfloat16)
    x = torch.randn(tokens, columns, device=device, dtype=torch.bfloat16)
    gradient = torch.randn(tokens, rows, device=device, dtype=torch.bfloat16)
    expected = _both(wide, x, gradient)
    seconds = {"bf16": median_seconds(partial(_both, compiled(wide), x, gradient), REPEATS)}
    errors: dict[str, float] = {}
    for name, kind in KINDS.items():
        try:
            check_products(name, device)
        except ConfigError:
            continue
        layer = kind(wide)
        errors[name] = max(_error(*pair) for pair in zip(_both(layer, x, gradient), expected, strict=True))
        seconds[f"{name}, not compiled"] = median_seconds(partial(_both, layer, x, gradient), REPEATS)
        seconds[name] = median_seconds(partial(_both, compiled(layer), x, gradient), REPEATS)
    return Measured(
        ratio=seconds["bf16"] / min(seconds[name] for name in errors),
        target=1.3,
        correct=max(errors.values()) < TOLERANCE,
        detail={"seconds": seconds, "relative_error": errors},
    )


def _both(layer: Any, x: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """The layer's output and the gradient of its input; the frozen weight gets none."""
    inputs = x.detach().requires_grad_()
    layer.requires_grad_(False)
    output = layer(inputs)
    return output.detach(), torch.autograd.grad(output, inputs, gradient)[0]


def _error(found: Tensor, expected: Tensor) -> float:
    return ((found.float() - expected.float()).norm() / expected.float().norm()).item()
