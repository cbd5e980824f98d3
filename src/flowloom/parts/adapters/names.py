"""What Chroma's linear layers are called by the programs that load adapters.

Ours, which are the checkpoint's, are ComfyUI's behind a prefix; kohya writes underscores for dots;
diffusers has other names, and several layers where the checkpoint has one with more rows.
"""

from __future__ import annotations

import re

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
OUTER = {"img_in": ("x_embedder",), "txt_in": ("context_embedder",), "final_layer.linear": ("proj_out",)}
"""Layers of a double block, of a single block and of neither, with diffusers' names in order of rows."""

_STACKS = (
    ("double_blocks", "transformer_blocks", DOUBLE),
    ("single_blocks", "single_transformer_blocks", SINGLE),
)


def to_diffusers(layer: str) -> tuple[str, ...]:
    """diffusers' names of `layer`, in the order of its rows; empty for a layer it does not know."""
    if layer in OUTER:
        return OUTER[layer]
    stack, index, leaf = [*layer.split(".", 2), "", ""][:3]
    for ours, theirs, leaves in _STACKS:
        if stack == ours:
            return tuple(f"{theirs}.{index}.{part}" for part in leaves.get(leaf, ()))
    return ()


def from_diffusers(layer: str) -> tuple[str, int, int] | None:
    """Our name of diffusers' `layer`, which part of its rows it is, and of how many."""
    for name, parts in OUTER.items():
        if layer in parts:
            return name, parts.index(layer), len(parts)
    stack, index, leaf = [*layer.split(".", 2), "", ""][:3]
    for ours, theirs, leaves in _STACKS:
        for name, parts in leaves.items() if stack == theirs else ():
            if leaf in parts:
                return f"{ours}.{index}.{name}", parts.index(leaf), len(parts)
    return None


def to_kohya(layer: str) -> str:
    """kohya's name: "lora_unet_double_blocks_0_img_attn_qkv"."""
    return "lora_unet_" + layer.replace(".", "_")


def from_kohya(layer: str) -> str | None:
    """Our name of kohya's `layer`; None when it is not a layer of Chroma."""
    flat = layer.removeprefix("lora_unet_")
    for name in OUTER:
        if flat == name.replace(".", "_"):
            return name
    found = re.fullmatch(r"(double_blocks|single_blocks)_(\d+)_(\w+)", flat)
    if not found:
        return None
    stack, index, rest = found.groups()
    for name in DOUBLE if stack == "double_blocks" else SINGLE:
        if rest == name.replace(".", "_"):
            return f"{stack}.{index}.{name}"
    return None
