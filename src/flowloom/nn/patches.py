"""Latent planes to tokens and back."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor


def pack(latents: Tensor, patch: int = 2) -> Tensor:
    """Tokens (B, L, patch^2 C) from planes (B, C, h, w): each square patch is one token, row by row."""
    return rearrange(latents, "B C (h dh) (w dw) -> B (h w) (C dh dw)", dh=patch, dw=patch)


def unpack(tokens: Tensor, h: int, w: int, patch: int = 2) -> Tensor:
    """Planes (B, C, h, w) from tokens (B, L, patch^2 C)."""
    rows = {"h": h // patch, "w": w // patch, "dh": patch, "dw": patch}
    return rearrange(tokens, "B (h w) (C dh dw) -> B C (h dh) (w dw)", **rows)


def image_ids(h: int, w: int, device: torch.device | None = None) -> Tensor:
    """Positions (h/2 * w/2, 3) of the tokens of h x w planes in patches of 2: 0, row, column."""
    return positions(h // 2, w // 2, device).flatten(0, 1)


def positions(rows: int, columns: int, device: torch.device | None = None) -> Tensor:
    """Positions (rows, columns, 3) of an image's tokens: 0, row, column."""
    ids = torch.zeros(rows, columns, 3, device=device)
    ids[..., 1] = torch.arange(rows, device=device)[:, None]
    ids[..., 2] = torch.arange(columns, device=device)[None, :]
    return ids
