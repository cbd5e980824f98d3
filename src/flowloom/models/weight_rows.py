"""Rows of weights on disk under new names: layers that a checkpoint has joined."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial

import torch
from torch import Tensor

from flowloom.models.weight_files import Entry
from flowloom.models.weights import Weights


def cut(weights: Weights, rows: Mapping[str, tuple[str, int, int]], swapped: Collection[str] = ()) -> Weights:
    """The tensors `rows[new] = (old, start, stop)`; the halves of those in `swapped` change places."""
    entries: dict[str, Entry] = {}
    for new, (old, start, stop) in rows.items():
        shape = (stop - start, *weights.shapes[old][1:])
        read = partial(_read, weights, old, start, stop, new in swapped)
        entries[new] = Entry(shape, weights.dtypes[old], read, weights.is_dequantized)
    return Weights(weights.path, entries, weights.metadata)


def _read(weights: Weights, name: str, start: int, stop: int, is_swapped: bool) -> Tensor:
    part = weights[name][start:stop]
    return torch.cat(part.chunk(2)[::-1]) if is_swapped else part
