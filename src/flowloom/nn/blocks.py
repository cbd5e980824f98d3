"""The two kinds of blocks of a multimodal diffusion transformer, and what they are made of.

A block leaves the gate of its last product to its caller. No gradient needs the product itself, so a backward
pass that recomputes the block stops before it: a third less to compute again.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from flowloom.nn.attention import attention
from flowloom.nn.recompute import recomputed


class RMSNorm(nn.Module):
    """x / rms(x) * scale over the last axis (Zhang & Sennrich 2019, arXiv:1910.07467)."""

    def __init__(self, dim: int):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        with _in_its_dtype(x):
            return functional.rms_norm(x, self.scale.shape, self.scale.to(x.dtype), eps=1e-6)


class QKNorm(nn.Module):
    """Normalises queries and keys head by head."""

    def __init__(self, dim: int):
        super().__init__()
        self.query_norm = RMSNorm(dim)
        self.key_norm = RMSNorm(dim)


class SelfAttention(nn.Module):
    """The projections of one stream's attention; the attention itself is joint."""

    def __init__(self, hidden_size: int, num_heads: int, qkv_bias: bool):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size, bias=qkv_bias)
        self.norm = QKNorm(hidden_size // num_heads)
        self.proj = nn.Linear(hidden_size, hidden_size)

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (B, H, S, d) of x (B, S, E)."""
        q, k, v = (split_heads(part, self.num_heads) for part in self.qkv(x).chunk(3, dim=-1))
        return self.norm.query_norm(q), self.norm.key_norm(k), v


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    return rearrange(x, "B S (H d) -> B H S d", H=num_heads)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Layer norm without weights, then (1 + scale) * x + shift."""
    with _in_its_dtype(x):
        return torch.addcmul(shift, functional.layer_norm(x, x.shape[-1:], eps=1e-6), 1 + scale)


def _in_its_dtype(x: Tensor) -> AbstractContextManager[Any]:
    """Norms of bfloat16 in bfloat16. CUDA's autocast, and no other, widens them to float32.

    Their kernels add up in float32 in any case; wide results would be kept for the backward pass.
    """
    return torch.autocast(x.device.type, enabled=False) if x.dtype == torch.bfloat16 else nullcontext()


class DoubleBlock(nn.Module):
    """Image and text, each with its own weights, attend together."""

    recomputes_ffn = False
    """See `Recompute`."""

    def __init__(self, hidden_size: int, num_heads: int, mlp_ratio: float, qkv_bias: bool):
        super().__init__()
        self.img_attn = SelfAttention(hidden_size, num_heads, qkv_bias)
        self.img_mlp = _mlp(hidden_size, int(hidden_size * mlp_ratio))
        self.txt_attn = SelfAttention(hidden_size, num_heads, qkv_bias)
        self.txt_mlp = _mlp(hidden_size, int(hidden_size * mlp_ratio))

    def forward(
        self,
        image: Tensor,
        text: Tensor,
        image_modulation: Tensor,
        text_modulation: Tensor,
        rotation: Tensor,
        mask: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The text, the image, and what the image still has to gain, before its last gate.

        Args:
            image: (B, L, E).
            text: (B, T, E).
            image_modulation: (B, 6, E): shift, scale and gate of the attention, then of the MLP.
            text_modulation: (B, 6, E).
            rotation, mask: as in `attention`; the text comes first.
        """
        img, txt = torch.split(image_modulation, 1, dim=1), torch.split(text_modulation, 1, dim=1)
        image_qkv = self.img_attn.heads(modulate(image, img[0], img[1]))
        text_qkv = self.txt_attn.heads(modulate(text, txt[0], txt[1]))
        q, k, v = (torch.cat(pair, dim=2) for pair in zip(text_qkv, image_qkv, strict=True))
        mixed = attention(q, k, v, rotation, mask)
        text_mixed, image_mixed = torch.split(mixed, [text.shape[1], image.shape[1]], dim=1)
        text = torch.addcmul(text, txt[2], self.txt_attn.proj(text_mixed))
        text = torch.addcmul(text, txt[5], self._feed_forward(self.txt_mlp, text, txt))
        image = torch.addcmul(image, img[2], self.img_attn.proj(image_mixed))
        return text, image, self._feed_forward(self.img_mlp, image, img)

    def _feed_forward(self, mlp: nn.Module, x: Tensor, modulation: Sequence[Tensor]) -> Tensor:
        def run(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
            return mlp(modulate(x, shift, scale))

        shift_scale = modulation[3:5]
        return recomputed(run, x, *shift_scale) if self.recomputes_ffn else run(x, *shift_scale)


class SingleBlock(nn.Module):
    """Attention and MLP side by side on the joint sequence (Dehghani et al. 2023, arXiv:2302.05442)."""

    recomputes_ffn = False
    """See `Recompute`. It keeps the hidden layer, which is one tensor with queries, keys and values."""

    def __init__(self, hidden_size: int, num_heads: int, mlp_ratio: float):
        super().__init__()
        self.num_heads = num_heads
        inner_size = int(hidden_size * mlp_ratio)
        self.parts = (hidden_size, hidden_size, hidden_size, inner_size)
        self.linear1 = nn.Linear(hidden_size, sum(self.parts))
        self.linear2 = nn.Linear(hidden_size + inner_size, hidden_size)
        self.norm = QKNorm(hidden_size // num_heads)

    def forward(self, x: Tensor, modulation: Tensor, rotation: Tensor, mask: Tensor | None) -> Tensor:
        """The change of `x`, before the gate.

        Args:
            x: (B, T + L, E), text first.
            modulation: (B, 3, E): shift, scale, gate.
            rotation, mask: as in `attention`.
        """
        shift, scale, _ = torch.split(modulation, 1, dim=1)
        *qkv, hidden = self.linear1(modulate(x, shift, scale)).split(self.parts, dim=-1)
        q, k, v = (split_heads(part, self.num_heads) for part in qkv)
        mixed = attention(self.norm.query_norm(q), self.norm.key_norm(k), v, rotation, mask)
        return recomputed(self._join, mixed, hidden) if self.recomputes_ffn else self._join(mixed, hidden)

    def _join(self, mixed: Tensor, hidden: Tensor) -> Tensor:
        hidden = functional.gelu(hidden, approximate="tanh")
        return self.linear2(torch.cat((mixed, hidden), dim=-1))


class LastLayer(nn.Module):
    """Tokens of width E to tokens of D channels."""

    def __init__(self, hidden_size: int, out_channels: int):
        super().__init__()
        self.linear = nn.Linear(hidden_size, out_channels)

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        """`modulation` is (B, 2, E): shift and scale."""
        shift, scale = torch.split(modulation, 1, dim=1)
        return self.linear(modulate(x, shift, scale))


def _mlp(hidden_size: int, inner_size: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(hidden_size, inner_size), nn.GELU(approximate="tanh"), nn.Linear(inner_size, hidden_size)
    )
