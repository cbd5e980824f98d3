"""Attention with rotary positions: what every block of the network shares."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


def attention(q: Tensor, k: Tensor, v: Tensor, rotation: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax attention of (B, H, S, d) heads after their rotation; (B, S, H d).

    Args:
        rotation: (S, d/2, 2), from `rotation_table`.
        mask: (B, 1, 1, S) bool, False for keys to ignore; None allows the fastest kernels.
    """
    q, k = rotate(q, rotation), rotate(k, rotation)
    if q.device.type == "cpu" and _compute_dtype(q) == torch.bfloat16:
        heads = _softmax_attention(q.bfloat16(), k.bfloat16(), v.bfloat16(), mask)
    else:
        heads = scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return rearrange(heads, "B H S d -> B S (H d)")


def _compute_dtype(x: Tensor) -> torch.dtype:
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def _softmax_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """As `scaled_dot_product_attention`, whose backward in bfloat16 is 2 to 8 times slower on a CPU."""
    shape, scale = (*q.shape[:3], k.shape[2]), q.shape[-1] ** -0.5
    bias, beta = q.new_zeros(1), 0.0
    if mask is not None:
        bias, beta = torch.zeros_like(mask, dtype=q.dtype).masked_fill(~mask, -torch.inf), 1.0
        bias = bias.expand(-1, q.shape[1], -1, -1).flatten(0, 1)
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    scores = torch.baddbmm(bias, q, k.transpose(1, 2), beta=beta, alpha=scale)
    return torch.bmm(scores.softmax(-1, dtype=q.dtype), v).view(*shape[:3], -1)


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Neighbouring channels of (B, H, S, d), taken as points of a plane, turned by their angles."""
    pairs = rearrange(x.float(), "B H S (d pair) -> B H S d pair", pair=2)
    if torch.compiler.is_compiling():
        # The compiler fuses this, but not complex numbers, which are three times as fast without it.
        (real, imaginary), (cos, sin) = pairs.unbind(-1), rotation.unbind(-1)
        turned = torch.stack((real * cos - imaginary * sin, imaginary * cos + real * sin), dim=-1)
    else:
        turned = torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(rotation))
    return turned.flatten(-2).to(x.dtype)


def rotation_table(positions: Tensor, axes_dim: Sequence[int], theta: float) -> Tensor:
    """Cosine and sine (S, d/2, 2) of rotary positions (Su et al. 2021, arXiv:2104.09864), float32.

    Args:
        positions: (S, A), one coordinate an axis.
        axes_dim: how many of the d channels turn with each axis; their angles are
            position / theta^(2i / dim), computed in float64 where the device has it.
        theta: 10,000 for Chroma.
    """
    precise = torch.float32 if positions.device.type == "mps" else torch.float64
    angles: list[Tensor] = []
    for position, dim in zip(positions.to(precise).unbind(-1), axes_dim, strict=True):
        exponents = torch.arange(0, dim, 2, dtype=precise, device=positions.device) / dim
        angles.append(position[:, None] * theta**-exponents)
    angle = torch.cat(angles, dim=-1)
    return torch.stack((angle.cos(), angle.sin()), dim=-1).float()
