"""The rival on the same weights: diffusers' transformer made from one of ours."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from flowloom.nn.chroma import Chroma
from flowloom.parts.adapters.names import to_diffusers
from flowloom.parts.quiet import quiet_imports

with quiet_imports():
    from diffusers import ChromaTransformer2DModel

NORMS = {
    "img_attn.norm.query_norm": "attn.norm_q",
    "img_attn.norm.key_norm": "attn.norm_k",
    "txt_attn.norm.query_norm": "attn.norm_added_q",
    "txt_attn.norm.key_norm": "attn.norm_added_k",
    "norm.query_norm": "attn.norm_q",
    "norm.key_norm": "attn.norm_k",
}


def twin(model: Chroma) -> Any:
    """diffusers' `ChromaTransformer2DModel` of the same sizes and weights, its approximator frozen."""
    params = model.params
    theirs = ChromaTransformer2DModel(
        in_channels=params.in_channels,
        num_layers=params.depth,
        num_single_layers=params.depth_single_blocks,
        attention_head_dim=params.hidden_size // params.num_heads,
        num_attention_heads=params.num_heads,
        joint_attention_dim=params.context_in_dim,
        axes_dims_rope=params.axes_dim,
        approximator_num_channels=params.approximator_in_dim,
        approximator_hidden_dim=params.approximator_hidden_size,
        approximator_layers=params.approximator_depth,
    )
    theirs.load_state_dict(renamed(model.state_dict()))
    theirs.distilled_guidance_layer.requires_grad_(False)
    return theirs


def renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our parameters under diffusers' names; layers that diffusers has in several parts are cut."""
    found = {}
    for name, tensor in state.items():
        layer, _, kind = name.rpartition(".")
        if layer.startswith("distilled_guidance_layer"):
            parts = (re.sub("(in|out)_layer", lambda m: {"in": "linear_1", "out": "linear_2"}[m[1]], layer),)
        else:
            parts = to_diffusers(layer) or (_norm(layer),)
        kind = "weight" if kind == "scale" else kind
        found |= {f"{part}.{kind}": rows for part, rows in zip(parts, _cut(tensor, parts), strict=True)}
    return found


def _norm(layer: str) -> str:
    stack, index, leaf = layer.split(".", 2)
    return f"{'single_' if stack == 'single_blocks' else ''}transformer_blocks.{index}.{NORMS[leaf]}"


def _cut(tensor: Tensor, parts: tuple[str, ...]) -> tuple[Tensor, ...]:
    if not parts[-1].endswith("proj_mlp"):
        return tensor.chunk(len(parts))
    # linear1 of a single block: queries, keys and values of one width, then the MLP's four of them.
    width = len(tensor) // 7
    return tensor.split([width, width, width, len(tensor) - 3 * width])


def velocity(
    theirs: Any, latents: Tensor, noise_level: Tensor, text: Tensor, image_ids: Tensor, text_mask: Tensor
) -> Tensor:
    """diffusers' prediction (B, L, D), given the boolean mask over text and image that Chroma means."""
    seen = text_mask.new_ones(len(text), latents.shape[1])
    return theirs(
        hidden_states=latents,
        encoder_hidden_states=text,
        timestep=noise_level,
        img_ids=image_ids,
        txt_ids=image_ids.new_zeros(text.shape[1], 3),
        attention_mask=torch.cat((text_mask, seen), dim=1),
        return_dict=False,
    )[0]
