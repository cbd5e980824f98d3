"""Frozen linear layers with 8-bit weights and a scale for each row; products in wide numbers or in 8 bits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FLOAT8_MAX = 448.0
INT8_MAX = 127.0
_TINY = torch.finfo(torch.float32).tiny
_MIN_ROWS = 32
"""Rows of an int8 product on CUDA, which needs more than 16."""


class ScaledLinear(nn.Linear):
    """A frozen linear layer with its weight in 8 bits: (..., in) -> (..., out).

    Each row is scaled to fill the range of `code_dtype`: without a scale, most weights of a network would be
    below 2^-6, where float8 has hardly any digits. Codes and scales are plain parameters.
    """

    code_dtype: ClassVar[torch.dtype]
    most: ClassVar[float]
    """The largest code."""

    def __init__(self, linear: nn.Linear, dtype: torch.dtype | None = None):
        """Quantize `linear`, for computation in `dtype`, by default that of its weight."""
        weight = linear.weight.detach()
        codes, scale = to_codes(weight, self.code_dtype, self.most)
        self._hold(linear, {"codes": codes, "row_scale": scale[:, 0]}, dtype or weight.dtype)

    @classmethod
    def restored(cls, linear: nn.Linear, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> Self:
        """The layer whose codes and scales are `tensors`, with the sizes and the bias of `linear`."""
        layer = cls.__new__(cls)
        layer._hold(linear, tensors, dtype)
        return layer

    def _hold(self, linear: nn.Linear, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> None:
        nn.Module.__init__(self)  # nn.Linear's own would register the wide weight
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.compute_dtype = dtype
        self.codes = nn.Parameter(tensors["codes"], requires_grad=False)
        self.row_scale = nn.Parameter(tensors["row_scale"], requires_grad=False)
        self.bias = linear.bias

    @property
    def weight(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The dequantized weight (out, in), computed at each call."""
        return (self.codes.float() * self.row_scale[:, None]).to(self.compute_dtype)

    def forward(self, input: Tensor) -> Tensor:  # the name is nn.Linear's
        """input W^T + bias, in its dtype, or autocast's inside of it."""
        x = input
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        output = self.product(x)
        has_bias = self.bias is not None  # pyright: ignore[reportUnnecessaryComparison] -- it may be None
        return output + self.bias.to(output.dtype) if has_bias else output

    def product(self, x: Tensor) -> Tensor:
        """x W^T."""
        raise NotImplementedError


class Float8Linear(ScaledLinear):
    """Weights in float8, products in the dtype of the input."""

    code_dtype, most = torch.float8_e4m3fn, FLOAT8_MAX

    def product(self, x: Tensor) -> Tensor:
        return cast("Tensor", _WideProduct.apply(x, self.codes, self.row_scale))


class Float8ProductLinear(ScaledLinear):
    """Weights and products in float8; CUDA only."""

    code_dtype, most = torch.float8_e4m3fn, FLOAT8_MAX

    def product(self, x: Tensor) -> Tensor:
        return cast("Tensor", _NarrowProduct.apply(x, self.codes, self.row_scale))


class Int8ProductLinear(ScaledLinear):
    """Weights and products in int8."""

    code_dtype, most = torch.int8, INT8_MAX

    def product(self, x: Tensor) -> Tensor:
        return cast("Tensor", _NarrowProduct.apply(x, self.codes, self.row_scale))


def to_codes(rows: Tensor, dtype: torch.dtype, most: float) -> tuple[Tensor, Tensor]:
    """Codes of `dtype` and scales (..., 1) in float32, whose product is close to `rows` (..., n)."""
    wide = rows.float()
    scale = wide.abs().amax(dim=-1, keepdim=True).clamp_min(_TINY) / most
    scaled = wide / scale
    return (scaled.round() if dtype is torch.int8 else scaled).to(dtype), scale


class _WideProduct(torch.autograd.Function):
    """x (codes * scale)^T; the codes are kept for the backward pass, not the wide weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(codes, scale)
        return F.linear(x, codes.to(x.dtype)) * scale.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        codes, scale = ctx.saved_tensors
        return (gradient * scale.to(gradient.dtype)) @ codes.to(gradient.dtype), None, None


class _NarrowProduct(torch.autograd.Function):
    """x (codes * scale)^T, both of its products of 8-bit codes: rows of x and of the gradient get codes too.

    In the backward pass the weight's scales belong to the summed dimension, so the gradient is multiplied
    with them before it is quantized.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(codes, scale)
        return _product(x, codes.t(), scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        codes, scale = ctx.saved_tensors
        return _product(gradient.float() * scale, codes, None, gradient.dtype), None, None


def _product(rows: Tensor, codes: Tensor, scale: Tensor | None, dtype: torch.dtype | None = None) -> Tensor:
    """rows (..., k) times codes (k, n), the columns of the result times `scale` (n,), in `dtype`."""
    dtype = dtype or rows.dtype
    flat = rows.reshape(-1, rows.shape[-1])
    multiply = _int8_product if codes.dtype is torch.int8 else _float8_product
    return multiply(flat, codes, scale, dtype).reshape(*rows.shape[:-1], codes.shape[1])


def _int8_product(rows: Tensor, codes: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    row_codes, row_scale = to_codes(rows, torch.int8, INT8_MAX)
    if rows.is_cuda and len(rows) < _MIN_ROWS:
        row_codes = F.pad(row_codes, (0, 0, 0, _MIN_ROWS - len(rows)))
    sums = torch._int_mm(row_codes, codes)[: len(rows)]  # pyright: ignore[reportPrivateUsage]
    product = sums.float() * row_scale
    return (product if scale is None else product * scale).to(dtype)


def _float8_product(rows: Tensor, codes: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    row_codes, row_scale = to_codes(rows, torch.float8_e4m3fn, FLOAT8_MAX)
    scale = torch.ones_like(codes[0], dtype=torch.float32) if scale is None else scale
    # The second matrix has to be in column order: a copy of its bytes where it is not.
    columns = codes.t().contiguous().t()
    product = torch._scaled_mm(  # pyright: ignore[reportPrivateUsage]
        row_codes, columns, row_scale, scale[None], out_dtype=torch.bfloat16
    )
    return product.to(dtype)
