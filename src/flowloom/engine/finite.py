"""A check that a checkpoint is finite: a saved NaN would return at every resume."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flowloom.json_types import is_object

AT_ONCE = 256
"""Tensors whose results are read from the device together."""


class Numbers(NamedTuple):
    """The numbers of a checkpoint, by the names of weights."""

    weights: Mapping[str, Tensor]
    average: Mapping[str, Tensor]
    optimizer: Mapping[str, Any]
    """Optimizer states of the weights that are trained now."""
    parked: Mapping[str, Any]
    """Rotation: optimizer states of other weights."""


def not_finite(numbers: Numbers) -> str | None:
    """The first weight, average or optimizer state with a NaN or an infinity; None when all are finite."""
    pending: list[tuple[str, Tensor]] = []
    for name, tensor in _kept(numbers):
        pending.append((name, torch.isfinite(tensor).all()))
        if len(pending) == AT_ONCE:
            if found := _first(pending):
                return found
            pending = []
    return _first(pending)


def _first(pending: Iterable[tuple[str, Tensor]]) -> str | None:
    return next((name for name, is_finite in pending if not is_finite.item()), None)


def _kept(numbers: Numbers) -> Iterator[tuple[str, Tensor]]:
    """Every floating-point tensor of a checkpoint, by its description."""
    for name, weight in numbers.weights.items():
        yield from _real(f"the weight {name}", weight.detach())
    for name, shadow in numbers.average.items():
        yield from _real(f"the average of {name}", shadow)
    for name, kept in (*numbers.optimizer.items(), *numbers.parked.items()):
        yield from _real(f"the optimizer state of {name}", kept)


def _real(what: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    if is_object(value):
        for part in value.values():
            yield from _real(what, part)
    elif isinstance(value, Tensor):
        if flatten := getattr(value, "__tensor_flatten__", None):
            # Low-bit states: codes, and scales that are real numbers.
            for name in flatten()[0]:
                yield from _real(what, getattr(value, name))
        elif value.is_floating_point():
            yield what, value
