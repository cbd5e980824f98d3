"""Latent planes to tokens and back."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor


def pack(latents: Tensor) -> Tensor:
    """Tokens (B, L, 4 C) from planes (B, C, h, w): each 2 x 2 patch is one token, row by row."""
    return rearrange(latents, "B C (h dh) (w dw) -> B (h w) (C dh dw)", dh=2, dw=2)


def unpack(tokens: Tensor, h: int, w: int) -> Tensor:
    """Planes (B, C, h, w) from tokens (B, L, 4 C)."""
    return rearrange(tokens, "B (h w) (C dh dw) -> B C (h dh) (w dw)", h=h // 2, w=w // 2, dh=2, dw=2)


def image_ids(h: int, w: int, device: torch.device | None = None) -> Tensor:
    """Positions (h/2 * w/2, 3) of the tokens of h x w planes: 0, row, column."""
    ids = torch.zeros(h // 2, w // 2, 3, device=device)
    ids[..., 1] = torch.arange(h // 2, device=device)[:, None]
    ids[..., 2] = torch.arange(w // 2, device=device)[None, :]
    return ids.flatten(0, 1)
