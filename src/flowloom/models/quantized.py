"""A frozen base in 8 or 4 bits per weight, to train an adapter on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol, cast

import torch
from torch import Tensor, nn

from flowloom.errors import ConfigError, Problem
from flowloom.import_warnings import quiet_imports
from flowloom.models.family import family_of
from flowloom.models.quantized_cache import QuantizedCache, key_of
from flowloom.models.scaled_linear import Float8Linear, Float8ProductLinear, Int8ProductLinear, ScaledLinear
from flowloom.models.weights import Weights, assign_weights, check_names, place, read_onto

Level = Literal["full", "8bit", "4bit"]
Products = Literal["wide", "int8", "fp8"]
FP8_CAPABILITY = (8, 9)
"""Compute capability of the first CUDA devices with float8 products."""
INT8_CAPABILITY = (7, 5)


class Form(Protocol):
    """A way to hold a frozen linear layer in few bits."""

    name: str

    def quantize(self, linear: nn.Linear, dtype: torch.dtype) -> nn.Linear:
        """A layer that computes in `dtype` with the weight and bias of `linear`, in few bits."""
        ...

    def restore(self, linear: nn.Linear, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> nn.Linear:
        """The layer that `quantize` made, from the tensors in its state; the bias is that of `linear`."""
        ...


def form_of(level: Level, products: Products, device: torch.device) -> Form | None:
    """The form of the blocks' linear layers; None for `full`.

    8bit: float8_e4m3 or int8, by the products, with one float32 scale per row. 4bit: nf4 in blocks of 64 with
    quantized scales (Dettmers et al. 2023, arXiv:2305.14314), by bitsandbytes.

    Raises:
        ConfigError: bitsandbytes is missing, or has no nf4 for `device`.
    """
    if level == "full":
        return None
    if level == "4bit":
        return _Nf4(device)
    kinds = {"wide": Float8Linear, "int8": Int8ProductLinear, "fp8": Float8ProductLinear}
    return _Scaled(kinds[products])


def check_products(products: Products, device: torch.device) -> None:
    """Check that `device` multiplies matrices in the number format of `products`.

    Raises:
        ConfigError: it does not.
    """
    if products == "wide" or (products == "int8" and device.type == "cpu"):
        return
    needed = FP8_CAPABILITY if products == "fp8" else INT8_CAPABILITY
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= needed:
        return
    others = "" if products == "fp8" else ", or the CPU"
    message = (
        f"{products} needs a CUDA device of compute capability {needed[0]}.{needed[1]} or newer{others}, "
        f"not {device.type}. Use wide{' or int8' if products == 'fp8' else ''}."
    )
    raise ConfigError("the configuration", [Problem("method.base_products", message)])


def quantize_base(model: nn.Module, level: Level, products: Products = "wide") -> None:
    """Quantize the weights of the blocks' linear layers in place; see `form_of`.

    The blocks have 98% of the weights; the layers before and after them are small and sensitive.

    Raises:
        ConfigError: bitsandbytes is missing, or has no nf4 for the network's device.
    """
    form = form_of(level, products, next(model.parameters()).device)
    if form:
        for name, linear in quantized_linears(model):
            model.set_submodule(name, form.quantize(linear, linear.weight.dtype))


@dataclass
class QuantizedLoad:
    """Loads a network with the linear layers of its blocks in `form`, from its weights or from `cache`.

    The wide weights are in memory one at a time.
    """

    form: Form
    cache: QuantizedCache | None = None

    def __call__(
        self, module_on_meta: nn.Module, weights: Weights, device: torch.device, dtype: torch.dtype
    ) -> None:
        """In place of `assign_weights`.

        Raises:
            WeightsError: names or shapes do not fit.
        """
        check_names(module_on_meta, weights)
        linears = dict(quantized_linears(module_on_meta))
        if self.cache is None:
            assign_quantized(module_on_meta, weights, linears, device, dtype, self.form.quantize)
            return
        network = type(module_on_meta).__name__
        key = key_of(weights.path, network, self.form.name, dtype, device.type)
        found = self.cache.load(key, partial(_placed, device))
        if found is not None:
            self._restore(module_on_meta, found, linears, dtype)
            return
        assign_quantized(module_on_meta, weights, linears, device, dtype, self.form.quantize)
        self.cache.store(key, module_on_meta.state_dict())

    def _restore(
        self,
        module: nn.Module,
        tensors: dict[str, Tensor],
        linears: Mapping[str, nn.Linear],
        dtype: torch.dtype,
    ) -> None:
        made: dict[str, nn.Linear] = {}
        for name, linear in linears.items():
            start = f"{name}."
            own = {key.removeprefix(start): tensors.pop(key) for key in [*tensors] if key.startswith(start)}
            bias = own.pop("bias", None)
            if bias is not None:
                linear.bias = nn.Parameter(bias, requires_grad=False)
            made[name] = self.form.restore(linear, own, dtype)
            module.set_submodule(name, nn.Identity())
        module.load_state_dict(tensors, assign=True)
        for name, layer in made.items():
            module.set_submodule(name, layer)


def _placed(device: torch.device, tensor: Tensor) -> Tensor:
    return place(tensor, device, tensor.dtype)


def assign_quantized(
    module_on_meta: nn.Module,
    weights: Weights,
    linears: Mapping[str, nn.Linear],
    device: torch.device,
    dtype: torch.dtype,
    quantize: Callable[[nn.Linear, torch.dtype], nn.Linear],
) -> None:
    """`assign_weights`, with what `quantize` makes of them in place of the layers `linears`.

    Raises:
        WeightsError: names or shapes of the other weights do not fit.
    """
    for name in linears:
        module_on_meta.set_submodule(name, nn.Identity())
    parts = {f"{name}.{part}" for name in linears for part in ("weight", "bias")}
    others = weights.gathered({name: (name,) for name in weights if name not in parts})
    assign_weights(module_on_meta, others, device, dtype)
    for name, linear in linears.items():
        # In the file's own format: rounded once.
        linear.weight = nn.Parameter(weights[f"{name}.weight"].to(device), requires_grad=False)
        if linear.bias is not None:  # pyright: ignore[reportUnnecessaryComparison] -- it may be None
            bias = read_onto(weights, f"{name}.bias", device, dtype)
            linear.bias = nn.Parameter(bias, requires_grad=False)
        module_on_meta.set_submodule(name, quantize(linear, dtype))


def quantized_linears(model: nn.Module) -> list[tuple[str, nn.Linear]]:
    """The linear layers inside of `model`'s blocks, by name."""
    blocks = tuple(f"{name}." for name, _ in family_of(model).blocks(model))
    return [(name, linear) for name, linear in linear_layers(model).items() if name.startswith(blocks)]


def linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """All linear layers of `model` by name."""
    modules = cast("Iterator[tuple[str, nn.Module]]", model.named_modules())
    return {name: module for name, module in modules if isinstance(module, nn.Linear)}


class _Scaled:
    """See Form: 8-bit codes and a scale for each row."""

    def __init__(self, kind: type[ScaledLinear]):
        self._kind = kind
        self.name = str(kind.code_dtype)

    def quantize(self, linear: nn.Linear, dtype: torch.dtype) -> nn.Linear:
        return self._kind(linear, dtype)

    def restore(self, linear: nn.Linear, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> nn.Linear:
        return self._kind.restored(linear, tensors, dtype)


class _Nf4:
    """See Form: bitsandbytes' nf4."""

    name = "nf4"

    def __init__(self, device: torch.device):
        try:
            with quiet_imports():
                from bitsandbytes.nn.modules import Linear4bit, Params4bit
        except ImportError as error:
            raise _cannot(f"bitsandbytes cannot be imported ({error}); pip install bitsandbytes") from error
        if device.type not in ("cuda", "cpu", "xpu"):
            raise _cannot(f"bitsandbytes has no nf4 for {device.type}")
        self._device = device
        self._linear, self._weight = Linear4bit, cast("Any", Params4bit)

    def quantize(self, linear: nn.Linear, dtype: torch.dtype) -> nn.Linear:
        narrow = self._empty(linear, dtype)
        weight = linear.weight.detach().to(dtype)
        made = self._weight(weight, requires_grad=False, quant_type="nf4", module=narrow)
        narrow.weight = made.to(self._device)  # this quantizes it
        return narrow

    def restore(self, linear: nn.Linear, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> nn.Linear:
        narrow = self._empty(linear, dtype)
        state = {name: tensor for name, tensor in tensors.items() if name != "weight"}
        narrow.weight = self._weight.from_prequantized(
            tensors["weight"], state, requires_grad=False, device=self._device, module=narrow
        )
        return narrow

    def _empty(self, linear: nn.Linear, dtype: torch.dtype) -> Any:
        narrow = self._linear(
            linear.in_features,
            linear.out_features,
            bias=False,
            compute_dtype=dtype,
            quant_type="nf4",
            device="meta",
        )
        narrow.bias = linear.bias
        return narrow


def _cannot(reason: str) -> ConfigError:
    message = f"{reason}. Or use 8bit, which needs no package."
    return ConfigError("the configuration", [Problem("lora.base_model_quant_level", message)])
