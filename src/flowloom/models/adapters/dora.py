"""The scale of a DoRA, by the two rules that loaders have.

With W (out, in) the base, S = W + s B A and norms over rows:

    peft, LyCORIS    W' = m S / |S|      what is trained here, and kept in a run
    ComfyUI, Forge   W' = m S / |W|      they divide by the norms of the base

A file for ComfyUI therefore has m |W| / |S| in place of m. Both norms change from row to row, and the base is
needed to convert one into the other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor

from flowloom.errors import WeightsError
from flowloom.models.adapters.fused import Layer

BaseWeight = Callable[[str], Tensor]
"""The base's weight (out, in) of a layer, by its name."""

_EPS = torch.finfo(torch.float32).eps
"""ComfyUI adds this to the norms; it makes rows of zeros correct too."""


def with_scale_over_base(name: str, layer: Layer, base: BaseWeight | None) -> Layer:
    """`layer` with the scale that ComfyUI takes; other kinds than DoRA are unchanged.

    Raises:
        WeightsError: there is no base, and it takes one.
    """
    return layer if layer.is_over_base else _converted(name, layer, base)


def with_scale_over_sum(name: str, layer: Layer, base: BaseWeight | None) -> Layer:
    """`layer` with the scale that peft and LyCORIS take; other kinds than DoRA are unchanged.

    Raises:
        WeightsError: there is no base, and it takes one.
    """
    return _converted(name, layer, base) if layer.is_over_base else layer


def _converted(name: str, layer: Layer, base: BaseWeight | None) -> Layer:
    if layer.kind != "dora":
        return layer
    if base is None:
        raise WeightsError(
            "ComfyUI reads the scales of a DoRA by another rule than peft, LyCORIS and diffusers. The "
            "conversion needs the base model. Name the base model that this DoRA was trained on."
        )
    weight = base(name).float()
    if weight.shape != layer.shape:
        raise WeightsError(f"the base's {name} is {tuple(weight.shape)}, the adapter is for {layer.shape}.")
    scale = layer.tensors["dora_scale"]
    of_base = _row_norms(weight) + _EPS
    of_sum = _row_norms(weight + delta(layer, weight.device))
    # A row of zeros stays zero under any scale.
    ratio = torch.where(of_sum > 0, of_base / of_sum, 1.0).to(scale.device)
    converted = scale / ratio if layer.is_over_base else scale * ratio
    return replace(
        layer, tensors=layer.tensors | {"dora_scale": converted}, is_over_base=not layer.is_over_base
    )


def _row_norms(weight: Tensor) -> Tensor:
    return cast("Tensor", weight.norm(dim=1))


def delta(layer: Layer, device: torch.device) -> Tensor:
    """s B A of a LoRA or DoRA, float32 on `device`."""
    down, up = (layer.tensors[f"lora_{side}.weight"].to(device, torch.float32) for side in "AB")
    return layer.scale * up @ down


def decomposed(weight: Tensor, layer: Layer) -> Tensor:
    """The weight (out, in) that a DoRA makes of `weight`, float32."""
    total = weight + delta(layer, weight.device)
    norm = _row_norms(weight) + _EPS if layer.is_over_base else _row_norms(total)
    factor = layer.tensors["dora_scale"].to(weight.device) / norm
    return total * torch.where(norm > 0, factor, 0.0)[:, None]
