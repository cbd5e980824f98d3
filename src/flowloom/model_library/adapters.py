"""Properties of a LoRA from its header: kind, rank, alpha, naming, and its base model."""

from __future__ import annotations

import re
import struct
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from flowloom.model_library.architectures import SD3_WIDTHS, UNETS
from flowloom.models.adapters.names import is_beside_the_network
from flowloom.models.header import Header, Place

Naming = Literal["kohya", "comfy", "diffusers", "peft", "plain"]

_KINDS = (
    ("lokr", (".lokr_w1", ".lokr_w2", ".lokr_w1_a", ".lokr_w2_a")),
    ("loha", (".hada_w1_a", ".hada_w2_a")),
    ("oft", (".oft_blocks", ".oft_diag", ".oft_R.weight")),
    (
        "lora",
        (
            ".lora_down.weight",
            ".lora_A.weight",
            ".lora_A.default.weight",
            ".lora.down.weight",
            ".lora_down",
            ".lora_A",
        ),
    ),
)
_DORA = (".dora_scale", ".lora_magnitude_vector", ".lora_magnitude_vector.weight")
# The tensors whose first side is the rank.
_RANKED = (*dict(_KINDS)["lora"], ".hada_w1_b", ".lokr_w2_b", ".lokr_w1_b")
_NAMINGS: tuple[tuple[Naming, tuple[str, ...]], ...] = (
    ("kohya", ("lora_unet_", "lycoris_", "lora_transformer_")),
    ("comfy", ("diffusion_model.",)),
    ("peft", ("base_model.model.",)),
    ("diffusers", ("transformer.", "unet.")),
)
# Layers that FLUX has and Chroma lost.
_ONLY_FLUX = (
    "img_mod",
    "txt_mod",
    "modulation_lin",
    "vector_in",
    "guidance_in",
    "time_in",
    "time_text_embed",
    "norm1_linear",
)
_DIT = ("double_blocks", "single_blocks", "single_transformer_blocks")
_IN_METADATA = (
    "modelspec.architecture",
    "ss_base_model_version",
    "ss_sd_model_name",
    "modelspec.implementation",
    "modelspec.title",
)
_WORDS = (
    ("chroma", r"chroma"),
    ("flux", r"flux"),
    ("sd3", r"sd-?_?3|stable-diffusion-3"),
    ("sdxl", r"sd_?xl|stable-diffusion-xl"),
    ("lumina2", r"lumina"),
    ("sd2", r"sd_?v?2|stable-diffusion-v2"),
    ("sd15", r"sd_?v?1|stable-diffusion-v1"),
)


@dataclass(frozen=True)
class AdapterFacts:
    """Properties of an adapter."""

    kind: Literal["lora", "dora", "lokr", "loha", "oft"]
    naming: Naming
    rank: int | None
    """Of most layers; None where it has none, as of a whole LoKr."""
    max_rank: int | None
    """Of the layer with the highest one."""
    alpha: float | None
    """None: not stated, and then it counts as the rank."""
    base: str | None
    """An architecture, `flux` for any FLUX.1; `flux-or-chroma` where layers fit both and nothing is said."""
    base_told_by: Literal["tensors", "metadata", "name"] | None
    num_layers: int
    has_text_encoder: bool


def look_at_adapter(path: Path, header: Header) -> AdapterFacts | None:
    """Properties of the adapter at `path`; None if it is not one. At most one number is read: an alpha."""
    names = header.tensors
    kind = next((kind for kind, endings in _KINDS if any(name.endswith(endings) for name in names)), None)
    if kind is None:
        return None
    if kind == "lora" and any(name.endswith(_DORA) for name in names):
        kind = "dora"
    ranks = Counter(place.shape[0] for name, place in names.items() if name.endswith(_RANKED) and place.shape)
    layers = {_layer(name) for name in names}
    base, told_by = _base(path, header, layers)
    return AdapterFacts(
        kind=kind,  # pyright: ignore[reportArgumentType] -- one of _KINDS
        naming=_naming(names),
        rank=ranks.most_common(1)[0][0] if ranks else None,
        max_rank=max(ranks, default=None),
        alpha=_alpha(path, header),
        base=base,
        base_told_by=told_by,
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


def _base(
    path: Path, header: Header, layers: set[str]
) -> tuple[str | None, Literal["tensors", "metadata", "name"] | None]:
    shown = _base_by_layers(header.tensors, layers)
    if shown is not None and shown != "flux-or-chroma":
        return shown, "tensors"
    fitting = ("flux", "chroma") if shown else tuple(dict(_WORDS))
    said = _word(" ".join(header.metadata.get(key, "") for key in _IN_METADATA), fitting)
    if said:
        return said, "metadata"
    called = _word(path.name, fitting)
    if called:
        return called, "name"
    return shown, "tensors" if shown else None


def _base_by_layers(tensors: Mapping[str, Place], layers: set[str]) -> str | None:
    joined = "\n".join(layers)
    if "distilled_guidance_layer" in joined:
        return "chroma"
    if any(mark in joined for mark in _DIT):
        has_clip = any(layer.startswith("lora_te1_text_model") for layer in layers)
        return "flux" if has_clip or any(mark in joined for mark in _ONLY_FLUX) else "flux-or-chroma"
    if "joint_blocks" in joined:
        return "sd3"
    if "attn_add_k_proj" in joined:  # what SD 3 has as well, in other widths
        return (
            "sd3" if _widths(tensors, "attn.add_k_proj", "attn_add_k_proj") & SD3_WIDTHS else "flux-or-chroma"
        )
    if "noise_refiner" in joined or "context_refiner" in joined:
        return "lumina2"
    for name, place in tensors.items():
        if "attn2" in name and "to_k" in name and name.endswith(dict(_KINDS)["lora"]):
            return UNETS.get(place.shape[1] if len(place.shape) > 1 else 0)
    return None


def _widths(tensors: Mapping[str, Place], *layers: str) -> set[int]:
    """Input widths of layers with these names, from the LoRAs on them."""
    downs = tuple(f"{layer}{ending}" for layer in layers for ending in dict(_KINDS)["lora"])
    return {
        place.shape[1] for name, place in tensors.items() if name.endswith(downs) and len(place.shape) > 1
    }


def _word(text: str, among: tuple[str, ...]) -> str | None:
    return next((base for base, word in _WORDS if base in among and re.search(word, text.lower())), None)


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
