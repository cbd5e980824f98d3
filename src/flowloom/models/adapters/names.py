"""What Chroma's linear layers are called by the programs that load and write adapters; no tensor is read.

Ours, which are the checkpoint's, are ComfyUI's behind a prefix; kohya writes underscores for dots;
diffusers has other names, and several layers where the checkpoint has one with more rows. OneTrainer and
LyCORIS write diffusers' names with underscores, FLOW the checkpoint's with an ending of its own.
"""

from __future__ import annotations

import re
from typing import NamedTuple

COMFY_PREFIX, DIFFUSERS_PREFIX = "diffusion_model.", "transformer."

APPROXIMATOR = "distilled_guidance_layer"
DOUBLE = {
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "img_attn.proj": ("attn.to_out.0",),
    "img_mlp.0": ("ff.net.0.proj",),
    "img_mlp.2": ("ff.net.2",),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "txt_attn.proj": ("attn.to_add_out",),
    "txt_mlp.0": ("ff_context.net.0.proj",),
    "txt_mlp.2": ("ff_context.net.2",),
}
SINGLE = {
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "linear2": ("proj_out",),
}
_RESIDUAL = {"in_layer": ("linear_1",), "out_layer": ("linear_2",)}
OUTER = {
    "img_in": ("x_embedder",),
    "txt_in": ("context_embedder",),
    "final_layer.linear": ("proj_out",),
    f"{APPROXIMATOR}.in_proj": (f"{APPROXIMATOR}.in_proj",),
    f"{APPROXIMATOR}.out_proj": (f"{APPROXIMATOR}.out_proj",),
}
"""Layers of a double block, of a single block and of neither, with diffusers' names in order of rows."""

_STACKS = (
    ("double_blocks", "transformer_blocks", DOUBLE),
    ("single_blocks", "single_transformer_blocks", SINGLE),
    (f"{APPROXIMATOR}.layers", f"{APPROXIMATOR}.layers", _RESIDUAL),
)

SUFFIXES = {
    "lora_A.weight": "lora_A.weight",
    "lora_A.default.weight": "lora_A.weight",
    "lora_A.default": "lora_A.weight",
    "lora_A": "lora_A.weight",
    "lora.lora_A": "lora_A.weight",
    "lora_down.weight": "lora_A.weight",
    "lora.down.weight": "lora_A.weight",
    "lora_B.weight": "lora_B.weight",
    "lora_B.default.weight": "lora_B.weight",
    "lora_B.default": "lora_B.weight",
    "lora_B": "lora_B.weight",
    "lora.lora_B": "lora_B.weight",
    "lora_up.weight": "lora_B.weight",
    "lora.up.weight": "lora_B.weight",
    "alpha": "alpha",
    "dora_scale": "dora_scale",
    "lora_magnitude_vector": "dora_scale",
    "lora_magnitude_vector.weight": "dora_scale",
    "lora_magnitude_vector.default": "dora_scale",
    "lora_magnitude_vector.default.weight": "dora_scale",
} | {f"lokr_{factor}": f"lokr_{factor}" for factor in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b")}
"""How files end a tensor's name, and how we do."""
_LONGEST_FIRST = sorted(SUFFIXES, key=len, reverse=True)
OTHER_KINDS = {"hada_": "LoHa", "oft_": "OFT", "lokr_t2": "LoKr of convolutions", "on_input": "(IA)^3"}
"""What the tensors of adapters that we do not read are called by, and the adapter's name."""

FLOW_SUFFIXES = (".lora.lora_A", ".lora.lora_B")
"""FLOW's own endings."""

_DOTTED_PREFIXES = re.compile(r"((base_model\.model|model|diffusion_model|transformer)\.)+")
_FLAT_PREFIX = re.compile(r"(lora_unet|lora_transformer|lycoris)_")
_BESIDE = re.compile(
    r"(lora_te\d*_|lycoris_te|text_encoders?(_\d)?\.|t5(xxl)?\.|clip_\w\.|te\d?\.|cond_stage_model\.|bundle_emb\.)"
)


class Place(NamedTuple):
    """Where a tensor of an adapter belongs."""

    layer: str
    """Our name of the layer."""
    part: int
    """Which part of its rows."""
    num_parts: int
    suffix: str
    """One of the values of SUFFIXES."""
    spelled: str
    """The file's name of the layer, without a prefix."""


def place_of(name: str) -> Place | None:
    """Where the tensor `name` of an adapter's file belongs; None when it is of no layer of Chroma."""
    ending = next((suffix for suffix in _LONGEST_FIRST if name.endswith(f".{suffix}")), None)
    if ending is None:
        return None
    flat = _without(_FLAT_PREFIX, name.removesuffix(f".{ending}"))
    spelled = _without(_DOTTED_PREFIXES, flat)
    place = (spelled, 0, 1) if to_diffusers(spelled) else from_diffusers(spelled) or _from_flat(flat)
    return Place(*place, SUFFIXES[ending], spelled) if place else None


def _without(prefix: re.Pattern[str], name: str) -> str:
    found = prefix.match(name)
    return name[found.end() :] if found else name


def is_beside_the_network(name: str) -> bool:
    """Whether the tensor `name` is of a text encoder, or a trained embedding: not of the network."""
    return _BESIDE.match(name) is not None


def to_diffusers(layer: str) -> tuple[str, ...]:
    """diffusers' names of `layer`, in the order of its rows; empty for a layer it does not know."""
    if layer in OUTER:
        return OUTER[layer]
    for ours, theirs, leaves in _STACKS:
        found = re.fullmatch(rf"{re.escape(ours)}\.(\d+)\.(.+)", layer)
        if found:
            return tuple(f"{theirs}.{found[1]}.{part}" for part in leaves.get(found[2], ()))
    return ()


def from_diffusers(layer: str) -> tuple[str, int, int] | None:
    """Our name of diffusers' `layer`, which part of its rows it is, and of how many."""
    return _from_diffusers(layer, ".")


def _from_diffusers(layer: str, dot: str) -> tuple[str, int, int] | None:
    """`from_diffusers` of a name with `dot` for every dot."""
    for name, parts in OUTER.items():
        if layer in [part.replace(".", dot) for part in parts]:
            return name, 0, 1
    for ours, theirs, leaves in _STACKS:
        stack = re.escape(f"{theirs}.".replace(".", dot))
        found = re.fullmatch(rf"{stack}(\d+){re.escape(dot)}(.+)", layer)
        for name, parts in leaves.items() if found else ():
            flat = [part.replace(".", dot) for part in parts]
            if found and found[2] in flat:
                return f"{ours}.{found[1]}.{name}", flat.index(found[2]), len(parts)
    return None


def to_kohya(layer: str) -> str:
    """kohya's name: "lora_unet_double_blocks_0_img_attn_qkv"."""
    return "lora_unet_" + layer.replace(".", "_")


def _from_flat(flat: str) -> tuple[str, int, int] | None:
    """Our name of a layer whose name has underscores for dots, in the checkpoint's spelling or diffusers'."""
    for name in OUTER:
        if flat == name.replace(".", "_"):
            return name, 0, 1
    for ours, _, leaves in _STACKS:
        found = re.fullmatch(rf"{ours.replace('.', '_')}_(\d+)_(\w+)", flat)
        for name in leaves if found else ():
            if found and found[2] == name.replace(".", "_"):
                return f"{ours}.{found[1]}.{name}", 0, 1
    return _from_diffusers(flat, "_")
