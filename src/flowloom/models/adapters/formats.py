"""Adapter files as ComfyUI, kohya's sd-scripts with LyCORIS, and diffusers load them; read.py reads them.

Canonical tensors are those of adapter.py's docstring, by the checkpoint's names. In the files:

    ours           ComfyUI                      kohya                   diffusers
    X.lora_A       diffusion_model.X.lora_A     lora_unet_X.lora_down   transformer.Y.lora_A
    X.lora_B       diffusion_model.X.lora_B     lora_unet_X.lora_up     transformer.Y.lora_B, times s
    X.dora_scale   m |W| / |W + s B A|, (out,1) m, (out, 1)             lora_magnitude_vector, (out,)
    X.lokr_*       the same, w1 times s         the same, w1 times s    as the LoRA that equals it
    alpha          diffusion_model.X.alpha      lora_unet_X.alpha       none: it counts as the rank

A scale is multiplied into the weights where loaders disagree about it. LyCORIS squares a LoKr's when it
merges, unless alpha is the rank. diffusers gives peft the alphas by the ends of names, so that the alpha of
`proj_out` also becomes that of `single_transformer_blocks.0.proj_out`. For DoRA see dora.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from flowloom.models.adapters import names
from flowloom.models.adapters.dora import BaseWeight, with_scale_over_base, with_scale_over_sum
from flowloom.models.adapters.fused import Layer, fuse, layers_of, lokr_as_lora, split_rows
from flowloom.models.family import DEFAULT, families
from flowloom.models.weights import save_weights

Form = Literal["comfy", "kohya", "diffusers"]

DORA_RULE, OVER_BASE, OVER_SUM = "flowloom.dora_scale", "over_base", "over_sum"
"""Metadata key, and the rules that DoRA scales follow: ComfyUI's, or LyCORIS's and peft's; see dora.py."""
USAGE_HINT = "modelspec.usage_hint"
DORA_HINTS = {
    OVER_BASE: "The DoRA scales follow ComfyUI's rule as of August 2026: loaders divide by the norms of the "
    "base weights, |W|. For loaders that divide by |W + dW|, which ComfyUI will do if its pull request 15458 "
    "is merged, export with 'flowloom export --format kohya': ComfyUI reads its names as well.",
    OVER_SUM: "The DoRA scales follow the rule of LyCORIS, peft and diffusers: loaders divide by the norms "
    "of the adapted weights, |W + dW|. For ComfyUI as of August 2026, which divides by |W|, export with "
    "'flowloom export --format comfy'.",
}
"""Description of a DoRA's rule, in a metadata key that other programs show."""


def save_adapter(
    path: Path,
    form: Form,
    state: Mapping[str, Tensor],
    meta: Mapping[str, Any],
    said: Mapping[str, str],
    base: BaseWeight | None = None,
) -> None:
    """Write an adapter in `form`; arguments and errors are those of `adapter_content`."""
    save_weights(path, *adapter_content(form, state, meta, said, base))


def adapter_content(
    form: Form,
    state: Mapping[str, Tensor],
    meta: Mapping[str, Any],
    said: Mapping[str, str],
    base: BaseWeight | None = None,
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a file in `form`; `state` and `meta` are its `state_dict()` and `metadata`.

    Args:
        said: the file's metadata; see `adapter_metadata`.
        base: the base's weights, which a DoRA needs when its scale changes rules.

    Raises:
        WeightsError: a base is needed and not given, or does not fit.
    """
    tensors = _FORMS[form](state, meta, base)
    said = {key: text for key, text in said.items() if key not in (DORA_RULE, USAGE_HINT)}
    if meta["kind"] == "dora":
        rule = OVER_BASE if form == "comfy" else OVER_SUM
        said |= {DORA_RULE: rule, USAGE_HINT: DORA_HINTS[rule]}
    if "ss_network_alpha" in said and (form == "diffusers" or meta["kind"] == "lokr"):
        said["ss_network_alpha"] = str(float(meta["rank"]))
    return tensors, said


def to_comfy(
    state: Mapping[str, Tensor], meta: Mapping[str, Any], base: BaseWeight | None = None
) -> dict[str, Tensor]:
    """Tensors by ComfyUI's names."""
    renamed: dict[str, Tensor] = {}
    known = _names(meta)
    layers = {name: with_scale_over_base(name, layer, base) for name, layer in layers_of(state, meta).items()}
    for name, layer in (_as_in_checkpoint(layers, known) if known.joins_for_comfy else layers).items():
        for suffix, tensor in _with_alpha(layer):
            renamed[f"{known.to_comfy(name)}.{suffix}"] = tensor
    return renamed


def to_kohya(
    state: Mapping[str, Tensor], meta: Mapping[str, Any], base: BaseWeight | None = None
) -> dict[str, Tensor]:
    """Tensors by the names of kohya's sd-scripts and of LyCORIS."""
    renamed: dict[str, Tensor] = {}
    layers = {name: with_scale_over_sum(name, layer, base) for name, layer in layers_of(state, meta).items()}
    known = _names(meta)
    for name, layer in (_as_in_checkpoint(layers, known) if known.joins_for_kohya else layers).items():
        for suffix, tensor in _with_alpha(layer):
            theirs = suffix.replace("lora_A", "lora_down").replace("lora_B", "lora_up")
            renamed[f"{names.to_kohya(name)}.{theirs}"] = tensor
    return renamed


def to_diffusers(
    state: Mapping[str, Tensor], meta: Mapping[str, Any], base: BaseWeight | None = None
) -> dict[str, Tensor]:
    """Tensors by the names that diffusers' `load_lora_weights` reads, fused layers cut into its own.

    diffusers has no LoKr on layers that are cut: it is written as the LoRA that equals it.
    """
    renamed: dict[str, Tensor] = {}
    for name, layer in layers_of(state, meta).items():
        if layer.kind == "lokr":
            layer = lokr_as_lora(layer)
        layer = with_scale_over_sum(name, layer, base).folded()
        theirs = _names(meta).to_diffusers(name)
        for part, tensors in zip(theirs, split_rows(layer.tensors, len(theirs)), strict=True):
            for suffix, tensor in tensors.items():
                suffix = suffix.replace("dora_scale", "lora_magnitude_vector.weight")
                renamed[f"{names.DIFFUSERS_PREFIX}{part}.{suffix}"] = tensor.clone()
    return renamed


def _names(meta: Mapping[str, Any]) -> names.LoraNames:
    return families()[meta.get("family", DEFAULT)].names


def _as_in_checkpoint(layers: dict[str, Layer], known: names.LoraNames) -> dict[str, Layer]:
    """The layers of diffusers' network joined as the checkpoint has them."""
    wholes: dict[str, list[Layer | None]] = {}
    for name, layer in layers.items():
        whole, part, num_parts = known.from_diffusers(name) or (name, 0, 1)
        wholes.setdefault(whole, [None] * num_parts)[part] = layer
    return {name: fuse(name, parts) for name, parts in wholes.items()}


_FORMS = {"comfy": to_comfy, "kohya": to_kohya, "diffusers": to_diffusers}


def _with_alpha(layer: Layer) -> Iterator[tuple[str, Tensor]]:
    if layer.kind == "lokr":
        layer = layer.folded()
    for suffix, tensor in layer.tensors.items():
        yield suffix, (tensor[:, None] if suffix == "dora_scale" else tensor)
    yield "alpha", torch.tensor(float(layer.rank or 1) if layer.alpha is None else layer.alpha)


def adapter_metadata(
    meta: Mapping[str, Any], config_json: str, dataset_summary: Mapping[str, Any], versions: Mapping[str, str]
) -> dict[str, str]:
    """Metadata of an adapter file: kohya's and modelspec's keys, and the run's configuration."""
    known = _names(meta)
    module, args = {
        "lora": (known.kohya_module, {}),
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
        "modelspec.architecture": f"{known.spec}/lora",
        "modelspec.implementation": known.implementation,
        "modelspec.title": f"{known.title} {meta['kind']} of rank {meta['rank']}",
        "flowloom.config": config_json,
        "flowloom.dataset": json.dumps(dataset_summary),
        "flowloom.versions": json.dumps(versions),
    }
