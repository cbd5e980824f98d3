"""Attention of diffusers' FLUX.1 and FLUX.2 blocks, with rotations as complex numbers.

diffusers turns queries and keys by four passes over memory each; the results here are the same.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from flowloom.nn.attention import attention, rotation_table
from flowloom.nn.recompute import recomputed

Rotation = tuple[Tensor, Tensor]
"""The table (S, d/2, 2) of `rotation_table`, and an empty one: the network joins pairs, of text and image."""


class Rotations(nn.Module):
    """Takes the place of FluxPosEmbed and Flux2PosEmbed, for the processors below."""

    def __init__(self, inner: Any):
        super().__init__()
        self.theta, self.axes_dim = inner.theta, inner.axes_dim

    def forward(self, ids: Tensor) -> Rotation:
        """The rotation of tokens at `ids` (S, axes)."""
        table = rotation_table(ids, self.axes_dim, self.theta)
        return table, table.new_empty(len(table), 0)


def rotate_as_complex(network: Any) -> None:
    """Let the blocks of `network` attend as here."""
    network.pos_embed = Rotations(network.pos_embed)
    for block in network.transformer_blocks:
        block.attn.set_processor(JointAttention())
    for block in network.single_transformer_blocks:
        is_parallel = hasattr(block.attn, "to_qkv_mlp_proj")
        block.attn.set_processor(ParallelAttention(block) if is_parallel else SelfAttention())


class JointAttention:
    """FluxAttnProcessor and Flux2AttnProcessor of double blocks: text and image together, the text first."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: None = None,
        image_rotary_emb: Rotation | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The image (B, L, E) and the text (B, T, E) after the attention."""
        assert image_rotary_emb
        num_text = encoder_hidden_states.shape[1]
        text = _heads(attn, encoder_hidden_states, ("add_q_proj", "add_k_proj", "add_v_proj"), "added_")
        image = _heads(attn, hidden_states, ("to_q", "to_k", "to_v"), "")
        q, k, v = (torch.cat(parts, dim=2) for parts in zip(text, image, strict=True))
        mixed = attention(q, k, v, image_rotary_emb[0], attention_mask)
        return attn.to_out[0](mixed[:, num_text:]), attn.to_add_out(mixed[:, :num_text])


def _heads(attn: Any, x: Tensor, layers: tuple[str, str, str], kind: str) -> tuple[Tensor, Tensor, Tensor]:
    return _normed(
        [getattr(attn, layer)(x) for layer in layers],
        getattr(attn, f"norm_{kind}q"),
        getattr(attn, f"norm_{kind}k"),
        attn.head_dim,
    )


def _normed(qkv: Any, norm_q: Any, norm_k: Any, head_dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values (B, H, S, d)."""
    q, k, v = (x.unflatten(-1, (-1, head_dim)) for x in qkv)
    return norm_q(q).transpose(1, 2), norm_k(k).transpose(1, 2), v.transpose(1, 2)


class SelfAttention:
    """FluxAttnProcessor of single blocks, whose output has no product of its weights yet."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: None = None,  # noqa: ARG002 -- text is part of the tokens
        attention_mask: None = None,
        image_rotary_emb: Rotation | None = None,
    ) -> Tensor:
        """The tokens (B, S, E) after the attention."""
        assert image_rotary_emb
        q, k, v = _heads(attn, hidden_states, ("to_q", "to_k", "to_v"), "")
        return attention(q, k, v, image_rotary_emb[0], attention_mask)


class ParallelAttention:
    """Flux2ParallelSelfAttnProcessor: attention and feed-forward part of the same input, added up.

    Args:
        block: its owner. If its `recomputes_ffn` is set, the activation of the feed-forward part is computed
            again in the backward pass; the product with the weights is not: attention needs the same product.
    """

    def __init__(self, block: Any):
        self._block = block
        block.recomputes_ffn = False

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        attention_mask: None = None,
        image_rotary_emb: Rotation | None = None,
    ) -> Tensor:
        """The change (B, S, E) of the block's input, before its gate."""
        assert image_rotary_emb
        qkv, inner = attn.to_qkv_mlp_proj(hidden_states).split(
            [3 * attn.inner_dim, attn.mlp_hidden_dim * attn.mlp_mult_factor], dim=-1
        )
        q, k, v = _normed(qkv.chunk(3, dim=-1), attn.norm_q, attn.norm_k, attn.head_dim)
        mixed = attention(q, k, v, image_rotary_emb[0], attention_mask)

        def last(mixed: Tensor, inner: Tensor) -> Tensor:
            return attn.to_out(torch.cat((mixed, attn.mlp_act_fn(inner)), dim=-1))

        return recomputed(last, mixed, inner) if self._block.recomputes_ffn else last(mixed, inner)
