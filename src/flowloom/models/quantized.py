"""A frozen base in 8 or 4 bits per weight, to train an adapter on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flowloom.errors import ConfigError, Problem
from flowloom.import_warnings import quiet_imports
from flowloom.models.family import family_of

Level = Literal["full", "8bit", "4bit"]

FLOAT8_MAX = 448.0


def quantize_base(model: nn.Module, level: Level) -> None:
    """Quantize the weights of the blocks' linear layers in place; the arithmetic keeps its dtype.

    The blocks have 98% of the weights; the layers before and after them are small and sensitive.

    8bit: float8_e4m3 with one float32 scale per row. 4bit: nf4 in blocks of 64 with quantized scales
    (Dettmers et al. 2023, arXiv:2305.14314), by bitsandbytes.

    Raises:
        ConfigError: bitsandbytes is missing, or has no nf4 for this device.
    """
    if level == "full":
        return
    replace = _to_float8 if level == "8bit" else _to_nf4(next(model.parameters()).device)
    for name, linear in quantized_linears(model):
        model.set_submodule(name, replace(linear))


def quantized_linears(model: nn.Module) -> list[tuple[str, nn.Linear]]:
    """The linear layers inside of `model`'s blocks, by name."""
    blocks = tuple(f"{name}." for name, _ in family_of(model).blocks(model))
    return [(name, linear) for name, linear in linear_layers(model).items() if name.startswith(blocks)]


def linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """All linear layers of `model` by name."""
    modules = cast("Iterator[tuple[str, nn.Module]]", model.named_modules())
    return {name: module for name, module in modules if isinstance(module, nn.Linear)}


class Float8Linear(nn.Linear):
    """A frozen linear layer with its weight in float8: (..., in) -> (..., out).

    Each row is scaled to fill float8's range: without a scale, most weights of a network would be
    below 2^-6, where float8 has hardly any digits.
    """

    def __init__(self, linear: nn.Linear):
        nn.Module.__init__(self)  # nn.Linear's own would register the wide weight
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.compute_dtype = linear.weight.dtype
        weight = linear.weight.detach().float()
        scale = weight.abs().amax(dim=1).clamp_min(torch.finfo(torch.float32).tiny) / FLOAT8_MAX
        codes = (weight / scale[:, None]).to(torch.float8_e4m3fn)
        self.codes = nn.Parameter(codes, requires_grad=False)
        self.row_scale = nn.Parameter(scale, requires_grad=False)
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
        output = cast("Tensor", _Float8Product.apply(x, self.codes, self.row_scale))
        has_bias = self.bias is not None  # pyright: ignore[reportUnnecessaryComparison] -- it may be None
        return output + self.bias.to(output.dtype) if has_bias else output


class _Float8Product(torch.autograd.Function):
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


def _to_float8(linear: nn.Linear) -> nn.Linear:
    return Float8Linear(linear)


def _to_nf4(device: torch.device) -> Any:
    try:
        with quiet_imports():
            from bitsandbytes.nn.modules import Linear4bit, Params4bit
    except ImportError as error:
        raise _cannot(f"bitsandbytes cannot be imported ({error}); pip install bitsandbytes") from error
    if device.type not in ("cuda", "cpu", "xpu"):
        raise _cannot(f"bitsandbytes has no nf4 for {device.type}")

    def replace(linear: nn.Linear) -> nn.Linear:
        narrow = Linear4bit(
            linear.in_features,
            linear.out_features,
            bias=linear.bias is not None,  # pyright: ignore[reportUnnecessaryComparison] -- it may be None
            compute_dtype=linear.weight.dtype,
            quant_type="nf4",
            device="meta",
        )
        make: Any = Params4bit  # declared without its own arguments
        weight = make(linear.weight.detach(), requires_grad=False, quant_type="nf4", module=narrow)
        narrow.weight = weight.to(device)  # this quantizes it
        narrow.bias = linear.bias
        return narrow

    return replace


def _cannot(reason: str) -> ConfigError:
    message = f"{reason}. Or use 8bit, which needs no package."
    return ConfigError("the configuration", [Problem("lora.base_model_quant_level", message)])
