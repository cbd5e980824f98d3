"""Adapter files of any program, read as canonical tensors; formats.py detects and writes the formats."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from flowloom.errors import WeightsError
from flowloom.models.adapters.adapter import Adapter, Site, attach_at, base_weight
from flowloom.models.adapters.alphas import stated_alphas
from flowloom.models.adapters.dora import with_scale_over_sum
from flowloom.models.adapters.formats import DORA_RULE, OVER_BASE
from flowloom.models.adapters.fused import Layer, fuse, layers_of, split
from flowloom.models.adapters.names import OTHER_KINDS, SUFFIXES, LoraNames, Place, is_beside_the_network
from flowloom.models.family import DEFAULT, ModelFamily, families, family_of
from flowloom.models.weight_files import some_names
from flowloom.models.weights import Weights, open_weights

_ENDINGS = tuple(f".{suffix}" for suffix in SUFFIXES if suffix != "alpha")


def is_adapter(path: Path) -> bool:
    """True if the file at `path` has an adapter's tensors, by their names.

    Raises:
        WeightsError: the file is missing or damaged.
    """
    names = list(open_weights(path))
    return any(name.endswith(_ENDINGS) for name in names) or _other_kind(names) is not None


def _other_kind(names: Iterable[str]) -> str | None:
    """The kind of an adapter that is not read, by its tensors' names."""
    for name in names:
        kind = next((kind for mark, kind in OTHER_KINDS.items() if f".{mark}" in name), None)
        if kind:
            return kind
    return None


def read_adapter(path: Path, family: ModelFamily | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Canonical float32 tensors of an adapter file, and an Adapter's metadata; its `notes` are for the user.

    Args:
        family: of the network that it is for; None: as the file's metadata says, else the default one.

    Raises:
        WeightsError: the file is no adapter of this family, or of a kind that is not supported.
    """
    weights = open_weights(path)
    family = family or _stated_family(weights)
    notes: list[str] = []
    places = _places(weights, family.names, notes)
    try:
        layers = _layers(weights, places, notes)
        if family.names.has_diffusers_layers:
            layers = _split(layers, family.names)
        meta = _metadata_of(layers)
    except WeightsError as error:
        raise WeightsError(f"{path}: this adapter cannot be read: {error}.") from error
    if weights.metadata.get(DORA_RULE) == OVER_BASE:
        meta["is_over_base"] = True
    state = {f"{name}.{suffix}": t for name, layer in layers.items() for suffix, t in layer.tensors.items()}
    return state, meta | {"family": family.name, "notes": notes}


def _split(layers: Mapping[str, Layer], names: LoraNames) -> dict[str, Layer]:
    """The layers of diffusers' network, of which a file may have joined several."""
    return {
        part: cut
        for name, layer in layers.items()
        for part, cut in split(layer, names.to_diffusers(name)).items()
    }


def _stated_family(weights: Weights) -> ModelFamily:
    said = weights.metadata.get("modelspec.architecture", "")
    known = (family for family in families().values() if said.startswith(family.names.spec))
    return next(known, families()[DEFAULT])


def _places(weights: Weights, names: LoraNames, notes: list[str]) -> dict[str, Place]:
    """Where each tensor that adapts the network belongs."""
    beside = {name for name in weights if is_beside_the_network(name)}
    places = {name: names.place_of(name) for name in weights if name not in beside}
    if beside and not places:
        raise WeightsError(
            f"{weights.path}: this adapter is for a text encoder ({some_names(beside, 1)}), and only the "
            "network is adapted here."
        )
    strange = [name for name, place in places.items() if place is None]
    if strange or not places:
        raise WeightsError(f"{weights.path}: {_why_strange(strange, len(places), names.title)}")
    if beside:
        notes.append(
            f"{weights.path.name}: some tensors are not used here ({len(beside)} of a text encoder or of "
            f"trained embeddings: {some_names(beside, 2)}). Only the network is adapted."
        )
    return {name: place for name, place in places.items() if place}


def _why_strange(strange: list[str], num_tensors: int, title: str) -> str:
    kind = _other_kind(strange)
    if kind:
        return f"its kind is {kind} ({some_names(strange, 1)}); LoRA, DoRA and LoKr can be read."
    if not any(name.endswith(_ENDINGS) for name in strange):
        return f"not a LoRA, DoRA or LoKr: it has {some_names(strange)!r}."
    return (
        f"{len(strange)} of {num_tensors} tensors adapt layers that {title} does not have "
        f"({some_names(strange)}). This adapter was made for another model."
    )


def _layers(weights: Weights, places: Mapping[str, Place], notes: list[str]) -> dict[str, Layer]:
    found: dict[str, list[Layer | None]] = {}
    spelled: dict[tuple[str, int], str] = {}
    for name, place in places.items():
        parts = found.setdefault(place.layer, [None] * place.num_parts)
        file_name = spelled.setdefault((place.layer, place.part), place.spelled)
        if file_name != place.spelled or len(parts) != place.num_parts:
            raise WeightsError(f"{place.layer} has several names in it, {place.spelled} is one")
        parts[place.part] = layer = parts[place.part] or Layer({})
        _put(layer, place, weights[name])
    alphas = stated_alphas(weights, notes)
    for (name, part), file_name in spelled.items():
        layer = found[name][part]
        assert layer is not None
        _check_whole(file_name, layer)
        if layer.alpha is None:
            layer.alpha = alphas(file_name, layer.rank)
    return {name: fuse(name, parts) for name, parts in found.items()}


def _put(layer: Layer, place: Place, tensor: Tensor) -> None:
    if place.suffix == "alpha":
        if tensor.numel() != 1:
            raise WeightsError(f"alpha of {place.spelled} is not one number")
        # As in sd-scripts and LyCORIS, 0 means not set.
        layer.alpha = float(tensor) or None
        return
    if place.suffix == "dora_scale":
        if tensor.ndim == 2 and tensor.shape[0] == 1 < tensor.shape[1]:
            raise WeightsError(
                f"the DoRA scales of {place.spelled} are norms over columns, and only norms over rows can be "
                "read (OneTrainer: Apply on output axis; LyCORIS: wd_on_out)"
            )
        tensor = tensor.flatten()
    layer.tensors[place.suffix] = tensor.float()


def _check_whole(name: str, layer: Layer) -> None:
    """Raise WeightsError where tensors of `layer` are missing or do not fit each other."""
    shapes = {suffix: tuple(tensor.shape) for suffix, tensor in layer.tensors.items()}
    if layer.kind == "lokr" and "dora_scale" in shapes:
        raise WeightsError(f"{name} is a LoKr with DoRA scales; LoRA, DoRA and plain LoKr can be read")
    if layer.kind == "lokr":
        pairs = {f: (f"{f}_a", f"{f}_b") for f in ("lokr_w1", "lokr_w2") if f not in shapes}
        needed = [suffix for pair in pairs.values() for suffix in pair]
    else:
        pairs = {"": ("lora_B.weight", "lora_A.weight")}
        needed = ["lora_A.weight", "lora_B.weight"]
    missing = [suffix for suffix in needed if suffix not in shapes]
    if missing:
        raise WeightsError(f"{name} has no {missing[0]}")
    flat = [suffix for suffix, shape in shapes.items() if suffix != "dora_scale" and len(shape) != 2]
    if flat:
        raise WeightsError(f"{flat[0]} of {name} is {shapes[flat[0]]}, not a matrix")
    for up, down in pairs.values():
        if shapes[up][1] != shapes[down][0]:
            raise WeightsError(f"{name} has {up} {shapes[up]} and {down} {shapes[down]}: their ranks differ")
    if "dora_scale" in shapes and shapes["dora_scale"] != (layer.shape[0],):
        raise WeightsError(f"{name} has {shapes['dora_scale'][0]} DoRA scales for {layer.shape[0]} rows")


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
    if not layer.rank:  # a LoKr of two full factors: any rank that equals alpha says its scale, 1
        return 1, 1.0
    return layer.rank, float(layer.rank) if layer.alpha is None else layer.alpha


def load_onto(model: nn.Module, path: Path, strength: float = 1.0) -> Adapter:
    """Adapt `model` by a file; `strength` 0 is the base alone, 1 the adapter as trained.

    Raises:
        WeightsError: the file is no adapter of this network.
    """
    state, meta = read_adapter(path, family_of(model))
    sites: dict[str, Site] = {}
    tensors: dict[str, Tensor] = {}
    try:
        for name, layer in layers_of(state, meta).items():
            rank, alpha = meta.get("sites", {}).get(name, (meta["rank"], meta["alpha"]))
            layer = with_scale_over_sum(name, layer, lambda name: base_weight(model.get_submodule(name)))
            sites[name] = Site(rank, alpha, lokr_tensors=layer.tensors if layer.kind == "lokr" else None)
            tensors |= {f"{name}.{suffix}": tensor for suffix, tensor in layer.tensors.items()}
        meta.pop("is_over_base", None)
        adapter = attach_at(model, meta["kind"], sites, meta)
        adapter.load_state_dict(tensors)
    except (AttributeError, WeightsError) as error:
        raise WeightsError(f"{path}: does not fit this network ({error}).") from error
    if strength != 1.0:
        adapter.set_strength(strength)
    return adapter
