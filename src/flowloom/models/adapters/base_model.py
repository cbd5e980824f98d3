"""The base model of an adapter, from the names and shapes of its tensors, its metadata, or its file name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from flowloom.models.architectures import OTHER_BASE_WORDS, SD3_WIDTHS, UNETS, AdapterBase
from flowloom.models.family import ModelFamily, families
from flowloom.models.header import Header, Place

Evidence = Literal["tensors", "metadata", "name"]
LORA_ENDINGS = (
    ".lora_down.weight",
    ".lora_A.weight",
    ".lora_A.default.weight",
    ".lora.down.weight",
    ".lora_down",
    ".lora_A",
)
_OR = "-or-"
_METADATA_KEYS = (
    "modelspec.architecture",
    "ss_base_model_version",
    "ss_sd_model_name",
    "modelspec.implementation",
    "modelspec.title",
)


def fits(base: str, family: ModelFamily) -> bool:
    """True if an adapter for `base`, as `base_of` returns it, may be for `family`."""
    return family.adapter_base.name in base.split(_OR)


def shares_layers(base: str, family: ModelFamily) -> bool:
    """True if `base` is another family with layers of the same names as `family`."""
    return any(
        set(known.layers) & set(family.adapter_base.layers) for known in _bases() if known.name == base
    )


def base_of(path: Path, header: Header, layers: set[str]) -> tuple[str | None, Evidence | None]:
    """The base of the adapter at `path` and what shows it.

    Names of bases are joined by `-or-` where the layers fit several families and nothing else is stated.

    Args:
        layers: the adapted layers, with `_` for every `.`.
    """
    shown = _base_by_layers(header.tensors, layers)
    if shown is not None and _OR not in shown:
        return shown, "tensors"
    candidates = shown.split(_OR) if shown else None
    stated = _base_in(" ".join(header.metadata.get(key, "") for key in _METADATA_KEYS), candidates)
    if stated:
        return stated, "metadata"
    named = _base_in(path.name, candidates)
    if named:
        return named, "name"
    return shown, "tensors" if shown else None


def _bases() -> list[AdapterBase]:
    return [family.adapter_base for family in families().values()]


def _base_by_layers(tensors: Mapping[str, Place], layers: set[str]) -> str | None:
    joined = "\n".join(layers)
    fitting = [base for base in _bases() if _has(joined, base.layers)]
    own = next((base.name for base in fitting if _has(joined, base.own_layers)), None)
    if own or fitting:
        return own or _joined(fitting)
    return _other_base(tensors, joined) or _joined(
        [base for base in _bases() if _has(joined, base.shared_layers)]
    )


def _has(joined: str, layers: Iterable[str]) -> bool:
    return any(layer in joined for layer in layers)


def _joined(bases: Sequence[AdapterBase]) -> str | None:
    return _OR.join(base.name for base in reversed(bases)) or None


def _other_base(tensors: Mapping[str, Place], joined: str) -> str | None:
    """The base of an adapter that no family trains."""
    attention = ("attn.add_k_proj", "attn_add_k_proj")
    if "joint_blocks" in joined or _widths(tensors, *attention) & SD3_WIDTHS:
        return "sd3"
    for name, place in tensors.items():
        if "attn2" in name and "to_k" in name and name.endswith(LORA_ENDINGS):
            return UNETS.get(place.shape[1] if len(place.shape) > 1 else 0)
    return None


def _widths(tensors: Mapping[str, Place], *layers: str) -> set[int]:
    """Input widths of layers with these names, from the LoRAs on them."""
    downs = tuple(f"{layer}{ending}" for layer in layers for ending in LORA_ENDINGS)
    return {
        place.shape[1] for name, place in tensors.items() if name.endswith(downs) and len(place.shape) > 1
    }


def _base_in(text: str, candidates: Sequence[str] | None) -> str | None:
    """The first base whose name is in `text`, one of `candidates` if there are any."""
    words = (*((base.name, base.word) for base in _bases()), *OTHER_BASE_WORDS)
    return next(
        (
            base
            for base, word in words
            if (candidates is None or base in candidates) and re.search(word, text.lower())
        ),
        None,
    )
