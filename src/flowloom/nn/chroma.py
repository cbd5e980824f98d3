"""Chroma: the FLUX transformer with its modulations computed by one small network, the approximator."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from einops import rearrange, repeat
from torch import Tensor, nn
from torch.nn import functional

from flowloom.nn.attention import rotation_table
from flowloom.nn.blocks import DoubleBlock, LastLayer, RMSNorm, SingleBlock
from flowloom.nn.recompute import Recompute


@dataclass(frozen=True)
class ChromaParams:
    """Sizes of a Chroma network."""

    in_channels: int
    context_in_dim: int
    hidden_size: int
    mlp_ratio: float
    num_heads: int
    depth: int
    depth_single_blocks: int
    axes_dim: tuple[int, ...]
    theta: int
    qkv_bias: bool
    approximator_in_dim: int
    approximator_depth: int
    approximator_hidden_size: int

    @property
    def num_modulations(self) -> int:
        """Modulation vectors: 3 a single block, 12 a double block, 2 for the last layer."""
        return 3 * self.depth_single_blocks + 12 * self.depth + 2

    @property
    def num_blocks(self) -> int:
        """Blocks of both kinds."""
        return self.depth + self.depth_single_blocks

    @property
    def text_width(self) -> int:
        """Width of the text states that the network reads."""
        return self.context_in_dim


CHROMA1 = ChromaParams(64, 4096, 3072, 4.0, 24, 19, 38, (16, 56, 56), 10_000, True, 64, 5, 5120)
"""The released 8.9B network."""


class Approximator(nn.Module):
    """One residual MLP that maps (noise level, guidance, index) to each modulation vector."""

    def __init__(self, in_dim: int, out_dim: int, hidden_size: int, depth: int):
        super().__init__()
        self.in_proj = nn.Linear(in_dim, hidden_size)
        self.layers = nn.ModuleList(_ApproximatorLayer(hidden_size) for _ in range(depth))
        self.norms = nn.ModuleList(RMSNorm(hidden_size) for _ in range(depth))
        self.out_proj = nn.Linear(hidden_size, out_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.out_proj(self.features(x))

    def features(self, x: Tensor) -> Tensor:
        """All but the last layer."""
        x = self.in_proj(x)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = x + layer(norm(x))
        return x


class _ApproximatorLayer(nn.Module):
    def __init__(self, hidden_size: int):
        super().__init__()
        self.in_layer = nn.Linear(hidden_size, hidden_size)
        self.out_layer = nn.Linear(hidden_size, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.out_layer(functional.silu(self.in_layer(x)))


class Trunk(nn.Module):
    """Chroma between its ends: text, modulations, blocks; parameter names are the released checkpoint's."""

    def __init__(self, params: ChromaParams, entrance: Mapping[str, nn.Module]):
        """
        Args:
            entrance: the layer that makes image tokens, by its name; it comes first among the parameters.
        """
        super().__init__()
        self.params = params
        self.recompute = Recompute()
        size = params.hidden_size
        if size != params.num_heads * sum(params.axes_dim):
            raise ValueError(
                f"{params.num_heads} heads with rotary axes {params.axes_dim} do not make up width {size}"
            )
        for name, layer in entrance.items():
            self.add_module(name, layer)
        self.txt_in = nn.Linear(params.context_in_dim, size)
        self.distilled_guidance_layer = Approximator(
            params.approximator_in_dim, size, params.approximator_hidden_size, params.approximator_depth
        )
        self.double_blocks = nn.ModuleList(
            DoubleBlock(size, params.num_heads, params.mlp_ratio, params.qkv_bias)
            for _ in range(params.depth)
        )
        self.single_blocks = nn.ModuleList(
            SingleBlock(size, params.num_heads, params.mlp_ratio) for _ in range(params.depth_single_blocks)
        )

    def blocks(self) -> list[tuple[str, nn.Module]]:
        """Every block with its name, in order of execution."""
        return [
            (f"{kind}.{i}", block)
            for kind in ("double_blocks", "single_blocks")
            for i, block in enumerate(getattr(self, kind))
        ]

    def hidden(
        self,
        image: Tensor,
        noise_level: Tensor,
        text: Tensor,
        image_ids: Tensor,
        text_mask: Tensor | None,
        guidance: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Image tokens (B, L, E) after all blocks, and the last layer's modulation (B, 2, E).

        Args:
            image: (B, L, E), from the entrance; for the others see `Chroma.forward`.
        """
        text = self.txt_in(text)
        num_text = text.shape[1]
        vectors = self.modulations(noise_level, guidance).to(image.dtype)
        doubles, singles = 6 * len(self.double_blocks), 3 * len(self.single_blocks)
        of_singles, of_images, of_texts, of_last = torch.split(vectors, [singles, doubles, doubles, 2], dim=1)
        # Every text token is at the origin.
        positions = functional.pad(image_ids, (0, 0, num_text, 0))
        rotation = rotation_table(positions, self.params.axes_dim, self.params.theta)
        mask = None
        if text_mask is not None:
            mask = functional.pad(text_mask, (0, image.shape[1]), value=True)[:, None, None, :]
        run = self.recompute
        run.start()
        for block, of_image, of_text in zip(
            self.double_blocks, _per_block(of_images, 6), _per_block(of_texts, 6), strict=True
        ):
            # The last gate is applied outside the block: its recomputation then ends a third earlier.
            text, image, gain = run(block, image, text, of_image, of_text, rotation, mask)
            image = torch.addcmul(image, of_image[:, -1:], gain)
        x = torch.cat((text, image), dim=1)
        for block, modulation in zip(self.single_blocks, _per_block(of_singles, 3), strict=True):
            x = torch.addcmul(x, modulation[:, -1:], run(block, x, modulation, rotation, mask))
        return x[:, num_text:], of_last

    @torch.no_grad()
    def modulations(self, noise_level: Tensor, guidance: Tensor | None = None) -> Tensor:
        """The modulation vectors (B, N, E): single blocks, double blocks' image, their text, last layer.

        The approximator is frozen: training it is known to break Chroma.
        """
        if guidance is None:
            guidance = torch.zeros_like(noise_level)
        pair = cast("tuple[Tensor, Tensor]", torch.broadcast_tensors(noise_level, guidance))
        inputs = approximator_inputs(self.params, *pair)
        return self.distilled_guidance_layer(inputs.to(self.distilled_guidance_layer.in_proj.weight.dtype))


class Chroma(Trunk):
    """The velocity field of images given text."""

    img_in: nn.Linear

    def __init__(self, params: ChromaParams):
        super().__init__(params, {"img_in": nn.Linear(params.in_channels, params.hidden_size)})
        self.final_layer = LastLayer(params.hidden_size, params.in_channels)

    def forward(
        self,
        latents: Tensor,
        noise_level: Tensor,
        text: Tensor,
        image_ids: Tensor,
        text_mask: Tensor | None = None,
        guidance: Tensor | None = None,
    ) -> Tensor:
        """The prediction for each image token, (B, L, D): velocity, or the image for x0 networks.

        Args:
            latents: (B, L, D) point on the path.
            noise_level: (B,) in [0, 1] or, one for all, (1,).
            text: (B, T, C) encoder states.
            image_ids: (L, 3) positions.
            text_mask: (B, T) bool, False for positions to ignore; None if there are none.
            guidance: like `noise_level`; None is 0, as Chroma is trained.
        """
        tokens = self.img_in(latents)
        image, modulation = self.hidden(tokens, noise_level, text, image_ids, text_mask, guidance)
        return self.final_layer(image, modulation)


def _per_block(vectors: Tensor, count: int) -> Tensor:
    """`count` vectors for each block, (blocks, B, count, E), to be iterated over."""
    return rearrange(vectors, "B (block count) E -> block B count E", count=count)


def approximator_inputs(params: ChromaParams, noise_level: Tensor, guidance: Tensor) -> Tensor:
    """Input of the approximator (B, N, in): sinusoids of noise level, guidance and the vector's index."""
    part = params.approximator_in_dim // 4
    of_sample = torch.cat((_sinusoids(noise_level, part), _sinusoids(guidance, part)), dim=-1)
    index = torch.arange(params.num_modulations, device=noise_level.device)
    of_index = _sinusoids(index, 2 * part)
    return torch.cat(
        (
            repeat(of_sample, "B D -> B N D", N=len(index)),
            repeat(of_index, "N D -> B N D", B=len(of_sample)),
        ),
        dim=-1,
    )


def _sinusoids(values: Tensor, dim: int) -> Tensor:
    """[cos, sin] of 1000 * values at dim/2 frequencies from 1 down to almost 1/10000; (..., dim)."""
    half = dim // 2
    # In float32 and by exp, as the released weights were trained: the angles reach 344,000 radians, where
    # one rounding more in a frequency is another phase.
    exponents = torch.arange(half, dtype=torch.float32, device=values.device) * -math.log(10_000)
    frequencies = torch.exp(exponents / half)
    angles = 1000 * values[..., None].float() * frequencies
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


def params_from_shapes(shapes: Mapping[str, tuple[int, ...]]) -> ChromaParams:
    """The sizes of the network that parameters of these names and shapes make up.

    Raises:
        KeyError: a name that every Chroma has is missing.
    """
    hidden_size, in_channels = shapes["img_in.weight"]
    return ChromaParams(in_channels, **trunk_sizes(shapes, hidden_size))


def trunk_sizes(shapes: Mapping[str, tuple[int, ...]], hidden_size: int) -> dict[str, Any]:
    """Arguments of ChromaParams other than `in_channels`, from the names and shapes of a trunk.

    Raises:
        KeyError: a name that every trunk has is missing.
    """
    head_size = shapes["single_blocks.0.norm.query_norm.scale"][0]
    approximator = "distilled_guidance_layer"
    return {
        "context_in_dim": shapes["txt_in.weight"][1],
        "hidden_size": hidden_size,
        "mlp_ratio": shapes["double_blocks.0.img_mlp.0.weight"][0] / hidden_size,
        "num_heads": hidden_size // head_size,
        "depth": count_modules(shapes, "double_blocks."),
        "depth_single_blocks": count_modules(shapes, "single_blocks."),
        "axes_dim": (head_size // 8, head_size * 7 // 16, head_size * 7 // 16),
        "theta": 10_000,
        "qkv_bias": "double_blocks.0.img_attn.qkv.bias" in shapes,
        "approximator_in_dim": shapes[f"{approximator}.in_proj.weight"][1],
        "approximator_depth": count_modules(shapes, f"{approximator}.layers."),
        "approximator_hidden_size": shapes[f"{approximator}.in_proj.weight"][0],
    }


def count_modules(names: Mapping[str, object], prefix: str) -> int:
    """The number of modules whose parameters' names begin with `prefix` and their number."""
    return len({name.removeprefix(prefix).split(".")[0] for name in names if name.startswith(prefix)})
