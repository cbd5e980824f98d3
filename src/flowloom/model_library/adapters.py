"""Properties of a LoRA from its header: kind, rank, alpha, naming, and its base model."""

from __future__ import annotations

import re
import struct
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from flowloom.models.adapters.base_model import LORA_ENDINGS, Evidence, base_of
from flowloom.models.adapters.names import is_beside_the_network
from flowloom.models.header import Header

Naming = Literal["kohya", "comfy", "diffusers", "peft", "plain"]

_KINDS = (
    ("lokr", (".lokr_w1", ".lokr_w2", ".lokr_w1_a", ".lokr_w2_a")),
    ("loha", (".hada_w1_a", ".hada_w2_a")),
    ("oft", (".oft_blocks", ".oft_diag", ".oft_R.weight")),
    ("lora", LORA_ENDINGS),
)
_DORA = (".dora_scale", ".lora_magnitude_vector", ".lora_magnitude_vector.weight")
# The tensors whose first side is the rank.
_RANKED = (*LORA_ENDINGS, ".hada_w1_b", ".lokr_w2_b", ".lokr_w1_b")
_NAMINGS: tuple[tuple[Naming, tuple[str, ...]], ...] = (
    ("kohya", ("lora_unet_", "lycoris_", "lora_transformer_")),
    ("comfy", ("diffusion_model.",)),
    ("peft", ("base_model.model.",)),
    ("diffusers", ("transformer.", "unet.")),
)


@dataclass(frozen=True)
class AdapterFacts:
    """Properties of an adapter."""

    kind: Literal["lora", "dora", "lokr", "loha", "oft"]
    naming: Naming
    rank: int | None
    """Of most layers; None if it has none, such as a full LoKr."""
    max_rank: int | None
    """Of the layer with the highest one."""
    alpha: float | None
    """None: not stated; then it equals the rank."""
    base: str | None
    """An architecture or family; several joined by `-or-` where the layers fit all of them."""
    base_evidence: Evidence | None
    num_layers: int
    has_text_encoder: bool


def read_adapter_facts(path: Path, header: Header) -> AdapterFacts | None:
    """Properties of the adapter at `path`; None if it is not one. At most one number is read: an alpha."""
    names = header.tensors
    kind = next((kind for kind, endings in _KINDS if any(name.endswith(endings) for name in names)), None)
    if kind is None:
        return None
    if kind == "lora" and any(name.endswith(_DORA) for name in names):
        kind = "dora"
    ranks = Counter(place.shape[0] for name, place in names.items() if name.endswith(_RANKED) and place.shape)
    layers = {_layer(name) for name in names}
    base, evidence = base_of(path, header, layers)
    return AdapterFacts(
        kind=kind,  # pyright: ignore[reportArgumentType] -- one of _KINDS
        naming=_naming(names),
        rank=ranks.most_common(1)[0][0] if ranks else None,
        max_rank=max(ranks, default=None),
        alpha=_alpha(path, header),
        base=base,
        base_evidence=evidence,
        num_layers=len(layers),
        has_text_encoder=any(is_beside_the_network(name) for name in names),
    )


def _layer(name: str) -> str:
    """The adapted layer's name, however it is spelled: with `_` for every `.`."""
    layer = re.split(r"\.(?:lora|lokr|hada|oft|alpha|dora|diff)", name, maxsplit=1)[0]
    return layer.replace(".", "_")


def _naming(names: Iterable[str]) -> Naming:
    first = next((name for name in names if not is_beside_the_network(name)), "")
    for naming, beginnings in _NAMINGS:
        if first.startswith(beginnings):
            return naming
    return "plain"


def _alpha(path: Path, header: Header) -> float | None:
    """Read from the file: one number of the tensor called alpha; else from metadata."""
    place = next((place for name, place in header.tensors.items() if name.endswith(".alpha")), None)
    if place is not None and place.numel == 1 and place.dtype in _NUMBERS:
        with path.open("rb") as file:
            file.seek(place.begin)
            return _number(file.read(place.end - place.begin), place.dtype)
    try:
        return float(header.metadata["ss_network_alpha"])
    except (KeyError, ValueError):
        return None


_NUMBERS = {"F64": "<d", "F32": "<f", "F16": "<e", "BF16": "<f", "I64": "<q", "I32": "<i"}


def _number(data: bytes, dtype: str) -> float | None:
    # A bfloat16 is the upper half of a float32.
    data = b"\0\0" + data if dtype == "BF16" else data
    try:
        return float(struct.unpack(_NUMBERS[dtype], data)[0])
    except struct.error:
        return None
