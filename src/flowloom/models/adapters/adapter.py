"""LoRA, DoRA and LoKr on linear layers of a network whose own weights stay frozen.

The arithmetic is peft's (LoRA, Hu et al. 2021, arXiv:2106.09685; DoRA, Liu et al. 2024, arXiv:2402.09353)
and LyCORIS's (LoKr, Yeh et al. 2023, arXiv:2309.14859). With W (out, in) the base and s = alpha / rank:

    LoRA   W + s B A                              lora_A (rank, in), lora_B (out, rank)
    DoRA   m (W + s B A) / |W + s B A|            dora_scale = m (out,), norms over each row
    LoKr   W + s w1 ⊗ (w2_a w2_b)                 lokr_w1 (a, c), lokr_w2_a (b, rank), lokr_w2_b (rank, d)

where LoKr keeps a full second factor (lokr_w2, and s = 1) when the rank would not make it smaller.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from flowloom.errors import ConfigError, Problem, WeightsError
from flowloom.import_warnings import quiet_imports
from flowloom.models.family import family_of, idle
from flowloom.models.quantized import linear_layers

__all__ = ["Adapter", "Kind", "Site", "attach", "attach_at", "base_weight"]

Kind = Literal["lora", "dora", "lokr"]


class Site(NamedTuple):
    """The adapter of one linear layer."""

    rank: int
    alpha: float
    lokr_factor: int = -1
    """LoKr: first divisor of both sides of the weight; -1 takes the most even split."""
    lokr_tensors: Mapping[str, Tensor] | None = None
    """LoKr read from a file: its tensors, with their own shapes."""


class Adapter:
    """The trained part of a network: named tensors, and a way to switch them off."""

    def __init__(self, kind: Kind, layers: dict[str, Any], metadata: dict[str, Any]):
        self.kind: Kind = kind
        self.layers = layers
        """The adapted layers by the base's name: a LokrLinear or peft's layer, around its `base_layer`."""
        self.metadata = metadata
        """kind, rank, alpha, targets, family; separate `sites` for layers that differ."""
        self._scalings: dict[str, float] = {}
        self._hooks: list[Any] = []
        self.parameters: dict[str, nn.Parameter] = {}
        """Float32, by canonical name: "double_blocks.0.img_attn.qkv.lora_A.weight", ".lokr_w1" ..."""
        self.find_parameters()

    def find_parameters(self) -> None:
        """Take the parameters that the layers have now."""
        self.parameters = {
            f"{name}.{suffix}": parameter
            for name, layer in self.layers.items()
            for suffix, parameter in _trained(self.kind, layer)
        }

    def state_dict(self) -> dict[str, Tensor]:
        """The trained tensors by canonical name; they share memory with the network."""
        return {name: parameter.detach() for name, parameter in self.parameters.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load every trained tensor.

        Raises:
            WeightsError: `state` is of another adapter.
        """
        wrong = sorted(state.keys() ^ self.parameters.keys())
        wrong += [n for n, p in self.parameters.items() if n in state and state[n].shape != p.shape]
        if wrong:
            raise WeightsError(
                f"{len(wrong)} tensors do not belong to this {self.kind}, the first is {wrong[0]!r}. "
                "Use the rank, the layers and the kind that it was trained with."
            )
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(state[name])

    def base_weight(self, name: str) -> Tensor:
        """The weight (out, in) of the layer `name` without any adapter, in float32."""
        return base_weight(self.layers[name])

    @contextmanager
    def disabled(self) -> Generator[None]:
        """Within it, the network computes exactly as the base alone."""
        self._switch(False)
        try:
            yield
        finally:
            self._switch(True)

    def _switch(self, on: bool) -> None:
        for layer in self.layers.values():
            wanted = [parameter.requires_grad for parameter in layer.parameters()]
            layer.enable_adapters(on)
            for parameter, requires_grad in zip(layer.parameters(), wanted, strict=True):
                parameter.requires_grad_(requires_grad)  # peft freezes what it disables

    def set_strength(self, strength: float) -> None:
        """Put every layer's output between the base's (0) and the adapted one's (1), or beyond them."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        for name, layer in self.layers.items():
            if self.kind == "lora":
                scaling = self._scalings.setdefault(name, layer.scaling[_NAME])
                layer.scaling[_NAME] = scaling * strength
            elif self.kind == "lokr":
                layer.strength = strength
            elif strength != 1.0:  # DoRA's output is not linear in anything that could be scaled
                self._hooks.append(layer.register_forward_hook(_between(strength)))


def attach(
    model: nn.Module,
    kind: Kind,
    rank: int,
    alpha: float,
    target_layers: Sequence[str],
    lokr_factor: int = -1,
) -> Adapter:
    """Adapt every linear layer whose dotted name contains one of `target_layers`; freeze all others.

    Names are those in the network, and those in the checkpoint if they differ.

    The network's output does not change until the adapter is trained. The initial weights depend only on
    torch's seed, not on the device or the base's dtype.

    Raises:
        ConfigError: no layer's name contains a target, or a package is missing.
    """
    family = family_of(model)
    layers = linear_layers(model)
    unread = idle(family, list(layers))
    linears = [
        name
        for name in layers
        if name not in unread and not any(part in name for part in family.defaults.never_trained)
    ]
    site = Site(rank, alpha, lokr_factor)
    spelled = {name: (name, family.names.in_checkpoint(name)) for name in linears}
    sites = {
        name: site
        for name, known_as in spelled.items()
        if any(target in spelling for target in target_layers for spelling in known_as)
    }
    if not sites:
        known = ", ".join(sorted({name.split(".")[0] for name in linears}))
        message = f"no linear layer's name contains any of {list(target_layers)}. Parts are: {known}."
        raise ConfigError("the configuration", [Problem("lora.target_layers", message)])
    metadata = {"kind": kind, "rank": rank, "alpha": alpha, "targets": list(target_layers)}
    metadata["family"] = family.name
    return attach_at(model, kind, sites, metadata)


def attach_at(model: nn.Module, kind: Kind, sites: Mapping[str, Site], metadata: dict[str, Any]) -> Adapter:
    """Adapt exactly the layers that `sites` names, in addition to existing adapters; freeze all others.

    Raises:
        ConfigError: a package is missing.
    """
    model.requires_grad_(False)
    make = _make_lokr if kind == "lokr" else partial(_make_lora, use_dora=kind == "dora")
    layers: dict[str, Any] = {}
    with _own_stream():
        for name, site in sites.items():
            outer: Any = model.get_submodule(name)
            *holders, inner = _nested(outer)
            layers[name] = layer = make(inner, site)
            # DoRA scales the base's rows, so it stays next to the base; the others are added on the outside.
            if kind == "dora" and holders:
                holders[-1].base_layer = layer
            else:
                layer.base_layer = outer
                model.set_submodule(name, layer)
    return Adapter(kind, layers, metadata)


def _nested(layer: Any) -> list[Any]:
    """An adapted layer and all layers inside it, the base last."""
    return [layer, *_nested(layer.base_layer)] if hasattr(layer, "base_layer") else [layer]


@contextmanager
def _own_stream() -> Generator[None]:
    """Within it, torch's CPU stream starts from its seed; afterwards it is restored."""
    state = torch.default_generator.get_state()
    torch.default_generator.manual_seed(torch.initial_seed())
    try:
        yield
    finally:
        torch.default_generator.set_state(state)


_NAME = "default"  # peft keeps several adapters in a layer, by name; we put layers into each other


def _make_lora(linear: nn.Linear, site: Site, use_dora: bool) -> Any:
    try:
        with quiet_imports():
            from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise _missing("peft", error) from error
    alpha: Any = site.alpha  # declared as int, but may be any number
    config = LoraConfig(r=site.rank, lora_alpha=alpha, use_dora=use_dora, target_modules=["linear"])
    holder: Any = inject_adapter_in_model(config, nn.ModuleDict({"linear": linear}), _NAME)
    layer = holder["linear"]
    # peft draws and keeps these in the base's dtype, which may be too coarse to train.
    down, up = layer.lora_A[_NAME].float(), layer.lora_B[_NAME].float()
    down.weight.data.copy_(nn.init.kaiming_uniform_(torch.empty(down.weight.shape), a=5**0.5))
    nn.init.zeros_(up.weight)
    if use_dora:
        layer.lora_magnitude_vector[_NAME].weight.data = base_weight(linear).norm(dim=1)
    return layer


def base_weight(layer: Any) -> Tensor:
    """The weight (out, in) of a linear layer, under the adapters that it may have, in float32."""
    from peft.utils.integrations import dequantize_module_weight

    return dequantize_module_weight(_nested(layer)[-1]).detach().float()


def _make_lokr(linear: nn.Linear, site: Site) -> LokrLinear:
    try:
        with quiet_imports():  # LyCORIS also reports every layer whose second factor stays whole
            from lycoris.modules.lokr import LokrModule

            alpha: Any = site.alpha  # declared as int, but may be any number
            lokr = LokrModule(
                "", linear, lora_dim=site.rank, alpha=alpha, factor=site.lokr_factor, bypass_mode=True
            )
    except ImportError as error:
        raise _missing("lycoris-lora", error) from error
    if site.lokr_tensors is not None:
        _take_shapes(lokr, site)
    return LokrLinear(linear, lokr.to(linear.weight.device))


def _take_shapes(lokr: Any, site: Site) -> None:
    assert site.lokr_tensors is not None
    for name in [name for name, _ in lokr.named_parameters()]:
        delattr(lokr, name)
    for name, tensor in site.lokr_tensors.items():
        setattr(lokr, name, nn.Parameter(tensor.float()))
    lokr.use_w1, lokr.use_w2 = "lokr_w1" in site.lokr_tensors, "lokr_w2" in site.lokr_tensors
    lokr.scale = 1.0 if lokr.use_w1 and lokr.use_w2 else site.alpha / site.rank


class LokrLinear(nn.Module):
    """A frozen linear layer and LyCORIS's LoKr beside it: (..., in) -> (..., out).

    The two outputs are added: LyCORIS's own way of adding the weights first would round the adapter
    to the digits that the base's dtype has left.
    """

    def __init__(self, base_layer: nn.Linear, lokr: Any):
        super().__init__()
        self.base_layer = base_layer
        self.lokr = lokr
        self.strength = 1.0
        self.is_enabled = True

    def enable_adapters(self, enabled: bool) -> None:
        """Switch the adapter on or off, as peft's layers are switched."""
        self.is_enabled = enabled

    def forward(self, x: Tensor) -> Tensor:
        """The base's output, and the adapter's on top of it unless it is disabled."""
        output = self.base_layer(x)
        if not self.is_enabled:
            return output
        return output + self.lokr.bypass_forward_diff(x, scale=self.strength).to(output.dtype)


def _trained(kind: Kind, layer: Any) -> Iterator[tuple[str, nn.Parameter]]:
    if kind == "lokr":
        yield from layer.lokr.named_parameters()
        return
    yield "lora_A.weight", layer.lora_A[_NAME].weight
    yield "lora_B.weight", layer.lora_B[_NAME].weight
    if kind == "dora":
        yield "dora_scale", layer.lora_magnitude_vector[_NAME].weight


def _between(strength: float) -> Callable[[Any, tuple[Tensor, ...], Tensor], Tensor]:
    def hook(layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return torch.lerp(layer.base_layer(*inputs), output, strength)

    return hook


def _missing(package: str, error: ImportError) -> ConfigError:
    message = f"{package} cannot be imported ({error}). pip install {package}."
    return ConfigError("the configuration", [Problem("method.kind", message)])
