"""Samples whose reference images differ in size: a network that joins their tokens needs one layout."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

from flowloom.models.family import Conditioning, Grid

if TYPE_CHECKING:
    from torch import Tensor

Rows = slice | list[int]
PredictAlike = Callable[[Rows, Sequence[Conditioning], Sequence[Grid]], "Tensor"]
"""The velocities of some rows of a batch, from their texts and the sizes of their reference images."""


def by_layout(texts: Sequence[Conditioning], predict: PredictAlike) -> Tensor:
    """The velocities of all rows: those with the same layout of images are predicted together."""
    import torch

    layouts: dict[tuple[Grid, ...], list[int]] = {}
    for i, text in enumerate(texts):
        layouts.setdefault(_sizes(text), []).append(i)
    if len(layouts) == 1:
        return predict(slice(None), texts, next(iter(layouts)))
    parts = [predict(rows, [texts[i] for i in rows], sizes) for sizes, rows in layouts.items()]
    velocity = torch.cat(parts)
    order = torch.tensor([i for rows in layouts.values() for i in rows], device=velocity.device)
    return torch.empty_like(velocity).index_copy(0, order, velocity)


def _sizes(text: Conditioning) -> tuple[Grid, ...]:
    grids = text.get("reference_grids")
    if grids is None:
        return ()
    sizes = cast("list[list[int]]", grids.tolist())
    return tuple((height, width) for height, width in sizes)
