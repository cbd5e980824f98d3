"""Attention with rotary positions: what every block of the network shares."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


def attention(q: Tensor, k: Tensor, v: Tensor, rotation: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax attention of (B, H, S, d) heads, positions rotated in; (B, S, H d)."""
    q, k = rotate(q, rotation), rotate(k, rotation)
    return rearrange(scaled_dot_product_attention(q, k, v, attn_mask=mask), "B H S d -> B S (H d)")


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rotation).flatten(-2).to(x.dtype)
