"""Rows of weights on disk under new names: layers that a checkpoint has joined."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial

import torch
from torch import Tensor

from flowloom.models.adapters.names import LoraNames
from flowloom.models.weight_files import Entry
from flowloom.models.weights import Weights


def cut(weights: Weights, rows: Mapping[str, tuple[str, int, int]], swapped: Collection[str] = ()) -> Weights:
    """The tensors `rows[new] = (old, start, stop)`; the halves of those in `swapped` change places."""
    entries: dict[str, Entry] = {}
    sources = _Newest(weights)
    for new, (old, start, stop) in rows.items():
        shape = (stop - start, *weights.shapes[old][1:])
        read = partial(_read, sources, old, start, stop, new in swapped)
        entries[new] = Entry(shape, weights.dtypes[old], read, weights.is_dequantized)
    return Weights(weights.path, entries, weights.metadata)


def in_parts(
    weights: Weights, names: LoraNames, renamed: Callable[[str], str], unused: Collection[str] = ()
) -> Weights:
    """A checkpoint's tensors by diffusers' names; q, k and v, which are one layer there, are cut.

    Args:
        names: of the linear layers.
        renamed: diffusers' name of any other layer.
        unused: tensors that diffusers' network does not have.
    """
    rows: dict[str, tuple[str, int, int]] = {}
    for name, (num_rows, *columns) in weights.shapes.items():
        layer, _, leaf = name.rpartition(".")
        parts = names.checkpoint_parts(layer) or (renamed(layer),)
        edges = [0, num_rows]
        if len(parts) == 3:  # queries are as wide as the network, keys and values may be fewer
            edges = [0, columns[0], (columns[0] + num_rows) // 2, num_rows]
        if name not in unused:
            for i, part in enumerate(parts):
                rows[f"{part}.{leaf}" if leaf and part else leaf] = (name, edges[i], edges[i + 1])
    return cut(weights, rows)


class _Newest:
    """The tensor of `weights` that was read last: q, k and v of a quantized layer are dequantized once."""

    def __init__(self, weights: Weights):
        self._weights = weights
        self._kept: dict[str, Tensor] = {}

    def read(self, name: str) -> Tensor:
        if name not in self._kept:
            self._kept = {}  # freed before the next one is made
            self._kept = {name: self._weights[name]}
        return self._kept[name]


def _read(sources: _Newest, name: str, start: int, stop: int, is_swapped: bool) -> Tensor:
    part = sources.read(name)[start:stop]
    return torch.cat(part.chunk(2)[::-1]) if is_swapped else part
