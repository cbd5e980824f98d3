"""An adapter, merged into the weights of its base."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path

import torch
from torch import Tensor

from flowloom.errors import WeightsError
from flowloom.models.adapters.dora import decomposed, delta
from flowloom.models.adapters.fused import Layer, layers_of, lokr_delta
from flowloom.models.adapters.read import read_adapter
from flowloom.models.family import detect
from flowloom.models.weight_files import Entry
from flowloom.models.weights import Weights, save_weights


def merge(
    base_path: Path,
    adapter_path: Path,
    out_path: Path,
    strength: float = 1.0,
    dtype: torch.dtype | None = None,
    on_tensor: Callable[[int, int], None] | None = None,
) -> list[str]:
    """Write the base's weights with the adapter in them, by the checkpoint's names, in `dtype`.

    `dtype` None keeps the base's, except that float8, which would round the adapter away, and all of a
    quantized base become bfloat16.

    One tensor is in memory at a time; sums are made in float32. `on_tensor` is called with the
    number done and the total.

    Returns:
        notes for the user on the adapter.

    Raises:
        WeightsError: the adapter adapts layers that the base does not have, or of other sizes.
    """
    family = detect(base_path)
    base = family.open_weights(base_path)
    state, meta = read_adapter(adapter_path, family)
    layers = {f"{name}.weight": layer for name, layer in layers_of(state, meta).items()}
    strange = [name for name, layer in layers.items() if base.shapes.get(name) != layer.shape]
    if strange:
        raise WeightsError(
            f"{adapter_path} adapts {len(strange)} layers that {base_path} does not have in that size, the "
            f"first is {strange[0]!r}. Name the base that it was trained on."
        )
    made = count(1)
    if dtype is None and base.is_dequantized:
        dtype = torch.bfloat16
    dtypes = {name: dtype or _kept(own) for name, own in base.dtypes.items()}

    def read(name: str) -> Tensor:
        merged = _merged(base, name, layers.get(name), strength, dtypes[name])
        if on_tensor:
            on_tensor(next(made), len(base))
        return merged

    entries = {name: Entry(base.shapes[name], dtypes[name], partial(read, name)) for name in base}
    history = {"flowloom.merged": f"{adapter_path.name} at strength {strength:g} into {base_path.name}"}
    metadata = base.metadata | history
    save_weights(out_path, Weights(base_path, entries, metadata), metadata)
    return meta["notes"]


def _kept(dtype: torch.dtype) -> torch.dtype:
    return torch.bfloat16 if dtype.is_floating_point and dtype.itemsize == 1 else dtype


def _merged(base: Weights, name: str, layer: Layer | None, strength: float, dtype: torch.dtype) -> Tensor:
    weight = base[name]
    if layer is not None:
        weight = weight.float()
        weight = torch.lerp(weight, adapted(weight, layer), strength)
    return weight.to(dtype)


def adapted(weight: Tensor, layer: Layer) -> Tensor:
    """The weight (out, in) that the adapter makes of `weight`, by the formulas of adapter.py."""
    if layer.kind == "lokr":
        return weight + lokr_delta(layer)
    return decomposed(weight, layer) if layer.kind == "dora" else weight + delta(layer, weight.device)
