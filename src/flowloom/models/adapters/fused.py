"""The tensors of one adapted layer: cut into the layers that diffusers has in its place, and put together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import torch
from torch import Tensor

from flowloom.errors import WeightsError
from flowloom.models.adapters.names import SUFFIXES

MLP_RATIO = 4
"""MLP ratio of every Chroma, for files without `proj_mlp`."""


@dataclass
class Layer:
    """The tensors of one layer in a file: canonical suffixes to float32 tensors, and alpha if it has one."""

    tensors: dict[str, Tensor]
    alpha: float | None = None
    is_over_base: bool = False
    """DoRA: whether `dora_scale` is to be divided by the norms of W's rows, as ComfyUI does; see dora.py."""

    @property
    def kind(self) -> Literal["lora", "dora", "lokr"]:
        """The kind of adapter of these tensors."""
        if any(suffix.startswith("lokr") for suffix in self.tensors):
            return "lokr"
        return "dora" if "dora_scale" in self.tensors else "lora"

    @property
    def rank(self) -> int:
        """Rows of the narrow side; 0 for a LoKr of two whole factors, which has none."""
        for suffix in ("lora_A.weight", "lokr_w2_b", "lokr_w1_b"):
            if suffix in self.tensors:
                return self.tensors[suffix].shape[0]
        return 0

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the weight that is adapted."""
        if self.kind == "lokr":
            (rows, columns), (inner_rows, inner_columns) = _shapes_of_lokr(self.tensors)
            return rows * inner_rows, columns * inner_columns
        return self.tensors["lora_B.weight"].shape[0], self.tensors["lora_A.weight"].shape[1]

    @property
    def scale(self) -> float:
        """s = alpha / rank; 1 when the file has no alpha, or there is no rank."""
        return 1.0 if self.alpha is None or not self.rank else self.alpha / self.rank

    def folded(self) -> Layer:
        """The same layer with a scale of 1: it is multiplied into B, or into LoKr's first factor."""
        factors = ("lora_B.weight", "lokr_w1", "lokr_w1_a")
        scaled = {s: t * self.scale if s in factors else t for s, t in self.tensors.items()}
        return replace(self, tensors=scaled if self.scale != 1.0 else self.tensors, alpha=None)


def layers_of(state: Mapping[str, Tensor], meta: Mapping[str, Any]) -> dict[str, Layer]:
    """An Adapter's canonical tensors, by the layer that they adapt."""
    layers: dict[str, Layer] = {}
    for name, tensor in state.items():
        suffix = next(suffix for suffix in set(SUFFIXES.values()) if name.endswith(f".{suffix}"))
        layer = name.removesuffix(f".{suffix}")
        _, alpha = meta.get("sites", {}).get(layer, (meta["rank"], meta["alpha"]))
        new = Layer({}, alpha, meta.get("is_over_base", False))
        layers.setdefault(layer, new).tensors[suffix] = tensor
    return layers


def split_rows(tensors: Mapping[str, Tensor], num_parts: int) -> list[dict[str, Tensor]]:
    """One layer's LoRA or DoRA as `num_parts` layers: each has its rows of B and m, and all of A."""
    down, up = tensors["lora_A.weight"], tensors["lora_B.weight"]
    sizes = _row_sizes(num_parts, rows=up.shape[0], width=down.shape[1])
    cuts = {name: torch.split(t, sizes) for name, t in tensors.items() if name != "lora_A.weight"}
    return [{"lora_A.weight": down} | {name: cut[i] for name, cut in cuts.items()} for i in range(num_parts)]


def split(layer: Layer, parts: Sequence[str]) -> dict[str, Layer]:
    """`layer` as the layers `parts`, in order of its rows; a LoKr as the LoRA that equals it."""
    if len(parts) == 1:
        return {parts[0]: layer}
    lora = lokr_as_lora(layer) if layer.kind == "lokr" else layer
    tensors = split_rows(lora.tensors, len(parts))
    return {part: replace(lora, tensors=cut) for part, cut in zip(parts, tensors, strict=True)}


def _row_sizes(num_parts: int, rows: int, width: int) -> list[int]:
    """q is as wide as the network, k and v share the rest; `linear1` has the MLP's rows below them."""
    if num_parts == 4:
        return [width, width, width, rows - 3 * width]
    if num_parts == 3:
        return [width, (rows - width) // 2, (rows - width) // 2]
    return [rows // num_parts] * num_parts


def fuse(name: str, parts: Sequence[Layer | None]) -> Layer:
    """The one layer `name` that `parts`, in order of rows, are cut from; None is a part that is not adapted.

    Parts that share A keep it and the rank. Others get the sum of their ranks, each with separate columns
    of B.

    Raises:
        WeightsError: parts are of several kinds, a DoRA leaves parts out, so that their row norms are not
            known, or a LoKr of parts would be as large as the layer.
    """
    present = [part for part in parts if part is not None]
    if len(parts) == 1:
        return present[0]
    first = present[0]
    kinds = sorted({part.kind for part in present})
    if len(kinds) > 1:
        raise WeightsError(f"{name}: some of its rows have a {kinds[0]}, others a {kinds[1]}")
    if first.kind == "lokr":
        return fuse(name, [part and _small_lora(name, part) for part in parts])
    if len(present) == len(parts) and all(_share_a(first, part) for part in present):
        joined = {
            s: torch.cat([part.tensors[s] for part in present]) for s in first.tensors if "lora_A" not in s
        }
        return Layer({"lora_A.weight": first.tensors["lora_A.weight"]} | joined, first.alpha)
    if len(present) < len(parts) and "dora_scale" in first.tensors:
        raise WeightsError(
            f"{name}: this DoRA adapts only some of its rows. Train all parts of it, or use LoRA."
        )
    width = first.tensors["lora_A.weight"].shape[1]
    keys = next((part.shape[0] for part in parts[1:3] if part), width)  # fewer than queries, if grouped
    sizes = [width, keys, keys] + ([MLP_RATIO * width] if len(parts) == 4 else [])
    ups = [
        part.tensors["lora_B.weight"] * part.scale if part else torch.zeros(size, 0)
        for part, size in zip(parts, sizes, strict=True)
    ]
    tensors = {
        "lora_A.weight": torch.cat([part.tensors["lora_A.weight"] for part in present]),
        "lora_B.weight": cast("Tensor", torch.block_diag(*ups)),
    }
    if "dora_scale" in first.tensors:
        tensors["dora_scale"] = torch.cat([part.tensors["dora_scale"] for part in present])
    return Layer(tensors)


def _small_lora(name: str, part: Layer) -> Layer:
    """A LoKr on one part of a layer's rows, as the LoRA that equals it."""
    lora = lokr_as_lora(part)
    rows, columns = part.shape
    if lora.rank * (rows + columns) >= rows * columns:
        raise WeightsError(
            f"{name}: this LoKr adapts parts of it apart (to_q, to_k ...), and its factors are too large to "
            "be joined. Use a LoKr on the checkpoint's own layers, or one of a smaller linear_dim"
        )
    return lora


def _share_a(one: Layer, other: Layer) -> bool:
    same = torch.equal(one.tensors["lora_A.weight"], other.tensors["lora_A.weight"])
    return same and one.alpha == other.alpha


def _shapes_of_lokr(tensors: Mapping[str, Tensor]) -> list[tuple[int, int]]:
    """Rows and columns of both factors."""
    ends = [
        (f"lokr_{w}", f"lokr_{w}") if f"lokr_{w}" in tensors else (f"lokr_{w}_a", f"lokr_{w}_b")
        for w in ("w1", "w2")
    ]
    return [(tensors[up].shape[0], tensors[down].shape[1]) for up, down in ends]


def _factor(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    return tensors[name] if name in tensors else tensors[f"{name}_a"] @ tensors[f"{name}_b"]


def lokr_delta(layer: Layer) -> Tensor:
    """s w1 ⊗ w2, (out, in)."""
    return layer.scale * torch.kron(_factor(layer.tensors, "lokr_w1"), _factor(layer.tensors, "lokr_w2"))


def lokr_as_lora(layer: Layer) -> Layer:
    """The LoRA that equals a LoKr: w1 ⊗ (w2_a w2_b) = (w1 ⊗ w2_a) (1 ⊗ w2_b)."""
    tensors = layer.tensors
    first = _factor(tensors, "lokr_w1")
    if "lokr_w2" in tensors:
        whole = tensors["lokr_w2"]
        is_flat = whole.shape[0] <= whole.shape[1]
        up, down = (torch.eye(whole.shape[0]), whole) if is_flat else (whole, torch.eye(whole.shape[1]))
    else:
        up, down = tensors["lokr_w2_a"], tensors["lokr_w2_b"]
    a = torch.kron(torch.eye(first.shape[1]), down)
    return Layer({"lora_A.weight": a, "lora_B.weight": torch.kron(first, up) * layer.scale})
