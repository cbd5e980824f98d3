"""Recomputation of the feed-forward part of diffusers' single blocks of FLUX.1."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from flowloom.nn.recompute import recomputed


def let_recompute_single(block: Any) -> None:
    """Let a single block follow its attribute `recomputes_ffn`, see `Recompute`; its outputs are the same."""
    block.recomputes_ffn = False
    block.forward = partial(_run_single, block, block.forward)


def _run_single(block: Any, forward: Any, *inputs: Any, **named: Any) -> tuple[Tensor, Tensor]:
    run = partial(_single_block, block) if block.recomputes_ffn else forward
    return run(*inputs, **named)


def _single_block(
    block: Any,
    hidden_states: Tensor,
    encoder_hidden_states: Tensor,
    temb: Tensor,
    image_rotary_emb: Any = None,
    joint_attention_kwargs: Any = None,
) -> tuple[Tensor, Tensor]:
    """FluxSingleTransformerBlock.forward, with its MLP and the last product recomputed.

    Args:
        hidden_states: (B, L, E), the image.
        encoder_hidden_states: (B, T, E), the text.
        temb: (B, E).
    """
    num_text = encoder_hidden_states.shape[1]
    x = torch.cat((encoder_hidden_states, hidden_states), dim=1)
    normed, gate = block.norm(x, emb=temb)
    # Made before the attention: its gradient is then added last, as in diffusers' order.
    for_ffn = normed.view_as(normed)
    mixed = block.attn(
        hidden_states=normed, image_rotary_emb=image_rotary_emb, **(joint_attention_kwargs or {})
    )

    def feed_forward(normed: Tensor, mixed: Tensor) -> Tensor:
        return block.proj_out(torch.cat((mixed, block.act_mlp(block.proj_mlp(normed))), dim=2))

    x = x + gate.unsqueeze(1) * recomputed(feed_forward, for_ffn, mixed)
    return x[:, :num_text], x[:, num_text:]
