"""Chroma's parameters under diffusers' names, and back.

diffusers has several parameters where the checkpoint has one with more rows: q, k, v, and the first layer
of a single block's MLP. Linear layers have their names in families/chroma.py; the rest is here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from flowloom.models.families.chroma import APPROXIMATOR as _APPROXIMATOR
from flowloom.models.families.chroma import NAMES

# Parameters by our name and diffusers', `{}` for the number of the block or layer.
_OURS_TO_THEIRS = {
    f"{_APPROXIMATOR}.norms.{{}}.scale": f"{_APPROXIMATOR}.norms.{{}}.weight",
    "double_blocks.{}.img_attn.norm.query_norm.scale": "transformer_blocks.{}.attn.norm_q.weight",
    "double_blocks.{}.img_attn.norm.key_norm.scale": "transformer_blocks.{}.attn.norm_k.weight",
    "double_blocks.{}.txt_attn.norm.query_norm.scale": "transformer_blocks.{}.attn.norm_added_q.weight",
    "double_blocks.{}.txt_attn.norm.key_norm.scale": "transformer_blocks.{}.attn.norm_added_k.weight",
    "single_blocks.{}.norm.query_norm.scale": "single_transformer_blocks.{}.attn.norm_q.weight",
    "single_blocks.{}.norm.key_norm.scale": "single_transformer_blocks.{}.attn.norm_k.weight",
}
_THEIRS_TO_OURS = {theirs: ours for ours, theirs in _OURS_TO_THEIRS.items()}


def is_diffusers(names: Iterable[str]) -> bool:
    """True if `names` are diffusers'."""
    return any(name.startswith(("transformer_blocks.", "single_transformer_blocks.")) for name in names)


def sources(theirs: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Our names for `theirs`, each with the names that its rows come from, in order."""
    parts: dict[str, dict[int, str]] = {}
    counts: dict[str, int] = {}
    for name in theirs:
        module, _, leaf = name.rpartition(".")
        found = NAMES.from_diffusers(module)
        if found:
            layer, part, count = found
            ours = f"{layer}.{leaf}"
        else:
            ours, part, count = _other(name, _THEIRS_TO_OURS), 0, 1
        parts.setdefault(ours, {})[part] = name
        counts[ours] = count
    # A layer with missing rows is left out, so that it is reported as missing.
    whole = {ours: found for ours, found in parts.items() if len(found) == counts[ours]}
    return {ours: tuple(found[part] for part in sorted(found)) for ours, found in whole.items()}


def to_diffusers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The parameters of ChromaTransformer2DModel that equal ours; views where rows are cut."""
    converted: dict[str, Tensor] = {}
    for name, tensor in state.items():
        module, _, leaf = name.rpartition(".")
        theirs = [f"{layer}.{leaf}" for layer in NAMES.to_diffusers(module)]
        if len(theirs) > 1:
            rows = _rows(len(theirs), len(tensor), state[f"{module}.weight"].shape[1])
            converted |= zip(theirs, torch.split(tensor, rows), strict=True)
        else:
            converted[theirs[0] if theirs else _other(name, _OURS_TO_THEIRS)] = tensor
    return converted


def from_diffusers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our parameters that equal those of a ChromaTransformer2DModel."""
    return {ours: torch.cat([state[name] for name in theirs]) for ours, theirs in sources(state).items()}


def _rows(num_parts: int, rows: int, width: int) -> list[int]:
    """Rows of each part of a fused layer: q, k and v are as wide as the network, the MLP has the rest."""
    return [width, width, width, rows - 3 * width][:num_parts]


def _other(name: str, table: Mapping[str, str]) -> str:
    """`name` by `table`; names in neither, such as the approximator's ends, are equal."""
    number = re.search(r"\.(\d+)\.", name)
    if number is None:
        return name
    pattern = name.replace(number[0], ".{}.", 1)
    return table.get(pattern, pattern).format(number[1])
