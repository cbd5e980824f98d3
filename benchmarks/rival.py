"""diffusers' transformer with the weights of our network."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flowloom.import_warnings import quiet_imports
from flowloom.models.chroma_names import to_diffusers
from flowloom.nn.chroma import Chroma

with quiet_imports():
    from diffusers import ChromaTransformer2DModel


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
    theirs.load_state_dict(to_diffusers(model.state_dict()))
    theirs.distilled_guidance_layer.requires_grad_(False)
    return theirs


def velocity(
    theirs: Any,
    latents: Tensor,
    noise_level: Tensor,
    text: Tensor,
    image_ids: Tensor,
    text_mask: Tensor | None,
) -> Tensor:
    """diffusers' prediction (B, L, D), given the boolean mask over text and image that Chroma means."""
    mask = None
    if text_mask is not None:
        mask = torch.cat((text_mask, text_mask.new_ones(len(text), latents.shape[1])), dim=1)
    return theirs(
        hidden_states=latents,
        encoder_hidden_states=text,
        timestep=noise_level,
        img_ids=image_ids,
        txt_ids=image_ids.new_zeros(text.shape[1], 3),
        attention_mask=mask,
        return_dict=False,
    )[0]
