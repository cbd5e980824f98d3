"""The numbers of quantized weights, computed when they are read: scaled float8, scaled int8, bitsandbytes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from flowloom.errors import WeightsError
from flowloom.models.weight_files import DTYPE_NAMES, Entry
from flowloom.models.weight_formats import Packed, Parts, Role, beside, packed, quantized_weights

SCALE_BLOCK = 128
"""Rows and columns that one scale of a grid of scales is for, in DeepSeek's and compressed-tensors' files."""
_INT8_STEP = 1 / 127


def dequantized(path: Path, entries: Mapping[str, Entry], metadata: Mapping[str, str]) -> dict[str, Entry]:
    """`entries` with quantized weights as float32 and without the tensors that describe them.

    Raises:
        WeightsError: their scales do not fit, or their description is damaged.
    """
    dtypes = {name: DTYPE_NAMES.get(entry.dtype, "") for name, entry in entries.items()}
    quantized = quantized_weights(dtypes, lambda name: _bytes(entries[name]), metadata)
    left_out = beside(entries, quantized)
    found = {name: entry for name, entry in entries.items() if name not in left_out}
    for weight, parts in quantized.items():
        try:
            found[weight] = _entry(entries, weight, parts)
        except ValueError as error:
            raise WeightsError(f"{path}: {weight}: {error}. Download it again.") from None
    return found


def _entry(entries: Mapping[str, Entry], weight: str, parts: Parts) -> Entry:
    entry = entries[weight]
    if "state" in parts:
        layout = _layout(entries, entry, parts)
        read = partial(_read_4bit, entry, {role: entries[name] for role, name in parts.items()}, layout)
        return Entry(layout.shape, torch.float32, read, is_dequantized=True)
    if "SCB" in parts:
        scales = entries[parts["SCB"]]
        _scale_grid(entry.shape, scales.shape)
        read = partial(_read_scaled, entry, scales, _INT8_STEP)
    else:
        scales = entries[parts["scale"]]
        _scale_grid(entry.shape, scales.shape)
        read = partial(_read_scaled, entry, scales, 1.0)
    return Entry(entry.shape, torch.float32, read, is_dequantized=True)


def _read_scaled(weight: Entry, scales: Entry, step: float) -> Tensor:
    scale = scales.read().float()
    repeats = _scale_grid(weight.shape, scales.shape)
    if repeats is None:
        return weight.read().float() * scale.reshape(-1, *[1] * (len(weight.shape) - 1)) * step
    for dim, repeat in enumerate(repeats):
        scale = scale.repeat_interleave(repeat, dim).narrow(dim, 0, weight.shape[dim])
    return weight.read().float() * scale * step


def _scale_grid(shape: tuple[int, ...], scales: tuple[int, ...]) -> list[int] | None:
    """Elements of a weight of `shape` per scale in each dimension; None for one scale, or one per row.

    Raises:
        ValueError: the scales do not fit.
    """
    count = math.prod(scales)
    if count == 1 or (shape and count == shape[0] and all(size in (1, count) for size in scales)):
        return None
    if len(scales) == len(shape):
        repeats = [_repeat(size, number) for size, number in zip(shape, scales, strict=True)]
        if all(repeats):
            return repeats
    raise ValueError(f"its scales {scales} do not fit its shape {shape}")


def _repeat(size: int, number: int) -> int:
    if number in (1, size):
        return size // number
    if number == math.ceil(size / SCALE_BLOCK):
        return SCALE_BLOCK
    return size // number if number and size % number == 0 else 0


def _layout(entries: Mapping[str, Entry], weight: Entry, parts: Parts) -> Packed:
    """The layout of a 4-bit weight.

    Raises:
        ValueError: its description is damaged, or the sizes of its tensors do not fit together.
    """
    layout = packed(_bytes(entries[parts["state"]]))
    if layout is None or weight.dtype is not torch.uint8:
        raise ValueError("the description of its 4-bit numbers is damaged")
    count = math.prod(layout.shape)
    maxima = -(-count // layout.block)
    needed: dict[Role, int] = {"absmax": maxima, "map": 16}
    if "nested map" in parts:
        needed |= {"nested absmax": -(-maxima // layout.nested_block), "nested map": 256}
    sizes = {role: math.prod(entries[parts[role]].shape) for role in needed}
    if math.prod(weight.shape) != -(-count // 2) or sizes != needed:
        raise ValueError(f"its 4-bit numbers do not fit its shape {layout.shape}")
    return layout


def _read_4bit(weight: Entry, parts: Mapping[Role, Entry], layout: Packed) -> Tensor:
    """Numbers of a table of 16, times the maximum of their block (Dettmers et al. 2023, arXiv:2305.14314)."""
    count = math.prod(layout.shape)
    maxima = parts["absmax"].read().flatten()
    if "nested map" in parts:
        scales = parts["nested absmax"].read().float().flatten()
        scales = scales.repeat_interleave(layout.nested_block)[: len(maxima)]
        maxima = parts["nested map"].read().float()[maxima.int()] * scales + layout.nested_offset
    table = parts["map"].read().float()
    # Of both numbers in a byte, the first is in its upper half.
    pairs = torch.stack((table.repeat_interleave(16), table.repeat(16)), dim=1)
    numbers = pairs[weight.read().flatten().int()].flatten()
    numbers = torch.nn.functional.pad(numbers[:count], (0, -count % layout.block))
    scaled = numbers.view(-1, layout.block) * maxima.float()[:, None]
    return scaled.flatten()[:count].view(layout.shape)


def _bytes(entry: Entry) -> bytes:
    content = entry.read().flatten()[: 2**16]
    return content.contiguous().view(torch.uint8).numpy().tobytes()
