"""Adapter files: written for ComfyUI, kohya and diffusers, read from any of them.

Canonical tensors are those of adapter.py's docstring, by the checkpoint's names. In the files:

    ours           ComfyUI                      kohya                   diffusers
    X.lora_A       diffusion_model.X.lora_A     lora_unet_X.lora_down   transformer.Y.lora_A
    X.lora_B       diffusion_model.X.lora_B     lora_unet_X.lora_up     transformer.Y.lora_B
    X.dora_scale   the same, (out, 1)           the same, (out, 1)      lora_magnitude_vector, (out,)
    X.lokr_*       the same                     the same                as the LoRA that equals it
    alpha          diffusion_model.X.alpha      lora_unet_X.alpha       transformer.Y.alpha

DoRA's scale is peft's: m of each output row, divided by the norm of that row of W + s B A, as kohya's and
LyCORIS's loaders compute it from a scale of shape (out, 1). (ComfyUI tells rows from columns by that shape
too, but divides by the norm of the row of W alone: nearly the same, as training moves a row's norm little.)
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flowloom.errors import WeightsError
from flowloom.parts.adapters import names
from flowloom.parts.adapters.adapter import Adapter, Site, attach_at
from flowloom.parts.adapters.fused import Layer, fuse, lokr_as_lora, split_rows
from flowloom.parts.families.weights import open_weights

COMFY_PREFIX, DIFFUSERS_PREFIX = "diffusion_model.", "transformer."

SUFFIXES = {
    "lora_A.weight": "lora_A.weight",
    "lora_A.default.weight": "lora_A.weight",
    "lora_down.weight": "lora_A.weight",
    "lora_B.weight": "lora_B.weight",
    "lora_B.default.weight": "lora_B.weight",
    "lora_up.weight": "lora_B.weight",
    "alpha": "alpha",
    "dora_scale": "dora_scale",
    "lora_magnitude_vector": "dora_scale",
    "lora_magnitude_vector.weight": "dora_scale",
} | {f"lokr_{factor}": f"lokr_{factor}" for factor in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b")}
"""How files end a tensor's name, and how we do."""


def is_adapter(path: Path) -> bool:
    """Whether the file at `path` has an adapter's tensors, by their names.

    Raises:
        WeightsError: the file is missing or damaged.
    """
    endings = tuple(f".{suffix}" for suffix in SUFFIXES if suffix != "alpha")
    return any(name.endswith(endings) for name in open_weights(path))


def layers_of(state: Mapping[str, Tensor], meta: Mapping[str, Any]) -> dict[str, Layer]:
    """An Adapter's canonical tensors, by the layer that they adapt."""
    layers: dict[str, Layer] = {}
    for name, tensor in state.items():
        suffix = next(suffix for suffix in set(SUFFIXES.values()) if name.endswith(f".{suffix}"))
        layer = name.removesuffix(f".{suffix}")
        _, alpha = meta.get("sites", {}).get(layer, (meta["rank"], meta["alpha"]))
        layers.setdefault(layer, Layer({}, alpha)).tensors[suffix] = tensor
    return layers


def to_comfy(state: Mapping[str, Tensor], meta: Mapping[str, Any]) -> dict[str, Tensor]:
    """Tensors by ComfyUI's names; `state` and `meta` are an Adapter's `state_dict()` and `metadata`."""
    renamed = {}
    for name, layer in layers_of(state, meta).items():
        for suffix, tensor in _with_alpha(layer):
            renamed[f"{COMFY_PREFIX}{name}.{suffix}"] = tensor
    return renamed


def to_kohya(state: Mapping[str, Tensor], meta: Mapping[str, Any]) -> dict[str, Tensor]:
    """Tensors by the names of kohya's sd-scripts and of LyCORIS."""
    renamed = {}
    for name, layer in layers_of(state, meta).items():
        for suffix, tensor in _with_alpha(layer):
            theirs = suffix.replace("lora_A", "lora_down").replace("lora_B", "lora_up")
            renamed[f"{names.to_kohya(name)}.{theirs}"] = tensor
    return renamed


def to_diffusers(state: Mapping[str, Tensor], meta: Mapping[str, Any]) -> dict[str, Tensor]:
    """Tensors by the names that diffusers' `load_lora_weights` reads, fused layers cut into its own.

    diffusers has no LoKr on layers that are cut: it is written as the LoRA that equals it.
    """
    renamed = {}
    for name, layer in layers_of(state, meta).items():
        if layer.kind == "lokr":
            layer = lokr_as_lora(layer)
        theirs = names.to_diffusers(name)
        for part, tensors in zip(theirs, split_rows(layer.tensors, len(theirs)), strict=True):
            for suffix, tensor in _with_alpha(Layer(tensors, layer.alpha)):
                suffix = suffix.replace("dora_scale", "lora_magnitude_vector.weight")
                tensor = tensor.flatten() if "magnitude" in suffix else tensor
                renamed[f"{DIFFUSERS_PREFIX}{part}.{suffix}"] = tensor.clone()
    return renamed


def _with_alpha(layer: Layer) -> Iterator[tuple[str, Tensor]]:
    for suffix, tensor in layer.tensors.items():
        yield suffix, (tensor[:, None] if suffix == "dora_scale" else tensor)
    yield "alpha", torch.tensor(float(layer.rank if layer.alpha is None else layer.alpha))


def read_adapter(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Canonical float32 tensors and metadata of an adapter file of any of the three kinds.

    Raises:
        WeightsError: the file is no adapter of Chroma, or adapts it in a way that we do not know.
    """
    weights = open_weights(path)
    found: dict[str, list[Layer | None]] = {}
    strange = []
    for name in weights:
        place = _place_of(name)
        if place is None:
            strange.append(name)
            continue
        layer, part, num_parts, suffix = place
        parts = found.setdefault(layer, [None] * num_parts)
        parts[part] = cut = parts[part] or Layer({})
        _put(cut, suffix, weights[name])
    if strange or not found:
        example = f"; {len(strange)} tensors have other names, the first is {strange[0]!r}" if strange else ""
        raise WeightsError(f"{path}: not a LoRA, DoRA or LoKr of Chroma's linear layers{example}.")
    try:
        layers = {name: fuse(name, parts) for name, parts in found.items()}
        meta = _metadata_of(layers)
    except (KeyError, WeightsError) as error:
        raise WeightsError(
            f"{path}: a tensor is missing or of another form than the rest ({error})."
        ) from error
    state = {f"{name}.{suffix}": t for name, layer in layers.items() for suffix, t in layer.tensors.items()}
    return state, meta


def _place_of(name: str) -> tuple[str, int, int, str] | None:
    """The canonical layer, part of its rows, number of parts, and suffix of a tensor in a file."""
    suffix = next((suffix for suffix in SUFFIXES if name.endswith(f".{suffix}")), None)
    if suffix is None:
        return None
    layer = name.removesuffix(f".{suffix}")
    for prefix in (COMFY_PREFIX, DIFFUSERS_PREFIX, "base_model.model."):
        layer = layer.removeprefix(prefix)
    if layer.startswith("lora_unet_"):
        layer = names.from_kohya(layer) or ""
    if names.to_diffusers(layer):
        return layer, 0, 1, SUFFIXES[suffix]
    place = names.from_diffusers(layer)
    return (*place, SUFFIXES[suffix]) if place else None


def _put(layer: Layer, suffix: str, tensor: Tensor) -> None:
    if suffix == "alpha":
        layer.alpha = float(tensor)
        return
    if suffix == "dora_scale":
        if tensor.ndim == 2 and tensor.shape[0] == 1 < tensor.shape[1]:
            raise WeightsError(
                "A DoRA with norms over columns cannot be read, only one with norms over rows."
            )
        tensor = tensor.flatten()
    layer.tensors[suffix] = tensor.float()


def _metadata_of(layers: Mapping[str, Layer]) -> dict[str, Any]:
    kinds = {layer.kind for layer in layers.values()}
    if len(kinds) > 1:
        raise WeightsError(f"its layers are of several kinds, {' and '.join(sorted(kinds))}")
    sites = {name: _site_of(layer) for name, layer in layers.items()}
    ((rank, alpha), _), *_ = Counter(sites.values()).most_common()
    meta = {"kind": kinds.pop(), "rank": rank, "alpha": alpha, "targets": list(layers)}
    others = {name: site for name, site in sites.items() if site != (rank, alpha)}
    return meta | ({"sites": others} if others else {})


def _site_of(layer: Layer) -> tuple[int, float]:
    if not layer.rank:  # a LoKr of two whole factors: any rank that equals alpha says its scale, 1
        return 1, 1.0
    return layer.rank, float(layer.rank) if layer.alpha is None else layer.alpha


def load_onto(model: nn.Module, path: Path, strength: float = 1.0) -> Adapter:
    """Adapt `model` by a file; `strength` 0 is the base alone, 1 the adapter as trained.

    Raises:
        WeightsError: the file is no adapter of this network.
    """
    state, meta = read_adapter(path)
    sites = {}
    for name, layer in layers_of(state, meta).items():
        rank, alpha = meta.get("sites", {}).get(name, (meta["rank"], meta["alpha"]))
        sites[name] = Site(rank, alpha, lokr_tensors=layer.tensors if layer.kind == "lokr" else None)
    try:
        adapter = attach_at(model, meta["kind"], sites, meta)
        adapter.load_state_dict(state)
    except (AttributeError, WeightsError) as error:
        raise WeightsError(f"{path}: does not fit this network ({error}).") from error
    if strength != 1.0:
        adapter.set_strength(strength)
    return adapter


def adapter_metadata(
    meta: Mapping[str, Any], config_json: str, dataset_summary: Mapping[str, Any], versions: Mapping[str, str]
) -> dict[str, str]:
    """What an adapter file says of itself: kohya's and modelspec's keys, and how the run was configured."""
    module, args = {
        "lora": ("networks.lora_flux", {}),
        "dora": ("lycoris.kohya", {"algo": "lora", "dora_wd": "True"}),
        "lokr": ("lycoris.kohya", {"algo": "lokr"}),
    }[meta["kind"]]
    return {
        "format": "pt",
        "ss_network_module": module,
        "ss_network_dim": str(meta["rank"]),
        "ss_network_alpha": str(meta["alpha"]),
        "ss_network_args": json.dumps(args),
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "chroma/lora",
        "modelspec.implementation": "https://huggingface.co/lodestones/Chroma",
        "modelspec.title": f"Chroma {meta['kind']} of rank {meta['rank']}",
        "flowloom.config": config_json,
        "flowloom.dataset": json.dumps(dataset_summary),
        "flowloom.versions": json.dumps(versions),
    }
