"""Chroma1-Radiance: Chroma's transformer on pixels, with a small network for the pixels of each patch.

The transformer sees patches of 16 x 16 pixels. For each patch, its last states are turned into the weights of
a gated MLP, which maps every pixel of the patch with its position to features; a convolution over the whole
image makes the prediction of them (PixNerd, Wang et al. 2025, arXiv:2507.23268).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import cast

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from flowloom.nn.blocks import RMSNorm
from flowloom.nn.chroma import ChromaParams, Trunk, count_modules, trunk_sizes
from flowloom.nn.patches import pack
from flowloom.nn.recompute import recomputed

COLOURS = 3


@dataclass(frozen=True)
class RadianceParams(ChromaParams):
    """Sizes of a Radiance network; `in_channels` are the numbers of a patch."""

    patch_size: int = 16
    nerf_hidden_size: int = 64
    nerf_mlp_ratio: int = 4
    nerf_depth: int = 4
    nerf_max_freqs: int = 8


RADIANCE1 = RadianceParams(768, 4096, 3072, 4.0, 24, 19, 38, (16, 56, 56), 10_000, True, 64, 5, 5120)
"""The released 9.5B network."""


class Radiance(Trunk):
    """The velocity field of images in pixels given text; parameter names are the released checkpoint's."""

    params: RadianceParams
    img_in_patch: nn.Conv2d

    def __init__(self, params: RadianceParams):
        size, width, patch = params.hidden_size, params.nerf_hidden_size, params.patch_size
        super().__init__(params, {"img_in_patch": nn.Conv2d(COLOURS, size, patch, patch)})
        self.nerf_image_embedder = PixelEmbedder(width, params.nerf_max_freqs, patch)
        self.nerf_blocks = nn.ModuleList(
            NerfBlock(size, width, params.nerf_mlp_ratio) for _ in range(params.nerf_depth)
        )
        self.nerf_final_layer_conv = NerfLastLayer(width)

    def blocks(self) -> list[tuple[str, nn.Module]]:
        """Every block with its name, in order of execution."""
        return super().blocks() + [(f"nerf_blocks.{i}", block) for i, block in enumerate(self.nerf_blocks)]

    def forward(
        self,
        pixels: Tensor,
        noise_level: Tensor,
        text: Tensor,
        image_ids: Tensor,
        text_mask: Tensor | None = None,
        guidance: Tensor | None = None,
    ) -> Tensor:
        """The prediction for each patch, (B, L, D): velocity, or the image for x0 networks.

        Args:
            pixels: (B, L, D) point on the path, patches with D = 3 P P numbers: colour, row, column.
            image_ids: (rows, columns, 3) positions of the patches.
            noise_level, text, text_mask, guidance: as for `Chroma`.
        """
        rows, columns, _ = image_ids.shape
        patch = self.params.patch_size
        # A convolution of which every pixel is used once is a linear layer on patches.
        tokens = functional.linear(pixels, self.img_in_patch.weight.flatten(1), self.img_in_patch.bias)
        ids = image_ids.flatten(0, 1)
        states, _ = self.hidden(tokens, noise_level, text, ids, text_mask, guidance)
        features = self.nerf_image_embedder(
            rearrange(pixels, "B L (C p) -> (B L) p C", C=COLOURS),
        )
        states = states.flatten(0, 1)
        for block in self.nerf_blocks:
            features = block(features, states)
        features = self.nerf_final_layer_conv.norm(features)
        shape = {"h": rows, "w": columns, "dh": patch, "dw": patch}
        image = rearrange(features, "(B h w) (dh dw) C -> B C (h dh) (w dw)", **shape)
        return pack(self.nerf_final_layer_conv.conv(image), patch)


class PixelEmbedder(nn.Module):
    """Features of each pixel from its colour and its place in the patch, in float32."""

    def __init__(self, width: int, max_freqs: int, patch: int):
        super().__init__()
        self.max_freqs, self.patch = max_freqs, patch
        self.embedder = nn.Sequential(Float32Linear(COLOURS + max_freqs**2, width))

    def forward(self, pixels: Tensor) -> Tensor:
        """Features (N, P P, W) like `pixels`, (N, P P, 3)."""
        places = cosines(self.patch, self.max_freqs, pixels.device).expand(len(pixels), -1, -1)
        return self.embedder(torch.cat((pixels.float(), places), dim=-1)).to(pixels.dtype)


def cosines(patch: int, max_freqs: int, device: torch.device) -> Tensor:
    """Products of cosines of a pixel's column and row, (P P, F F), with less weight for high frequencies.

    With x and y in [0, 1]: cos(pi i x) cos(pi j y) / (1 + i j), for i and j below F.
    """
    at = torch.linspace(0, 1, patch, device=device)
    frequency = torch.arange(max_freqs, dtype=torch.float32, device=device)
    waves = torch.cos(at[:, None] * frequency * torch.pi)
    weights = 1 / (1 + frequency[:, None] * frequency)
    return torch.einsum("xi,yj,ij->yxij", waves, waves, weights).flatten(2).flatten(0, 1)


class Float32Linear(nn.Linear):
    """A linear layer that computes in float32, whichever number format its weights have."""

    def forward(self, input: Tensor) -> Tensor:
        # Tensors without data have no autocast.
        with nullcontext() if input.is_meta else torch.autocast(input.device.type, enabled=False):
            bias = None if self.bias is None else self.bias.float()  # pyright: ignore[reportUnnecessaryComparison]
            return functional.linear(input.float(), self.weight.float(), bias)


class NerfBlock(nn.Module):
    """A gated MLP on the pixels of each patch, whose weights are made of the patch's states.

    The weights of one patch take 16 times the memory of its states, the features of its pixels five times:
    patches are computed some at a time, and again in the backward pass.
    """

    num_at_a_time = 256
    """Patches."""

    def __init__(self, hidden_size: int, width: int, mlp_ratio: int):
        super().__init__()
        self.param_generator = nn.Linear(hidden_size, 3 * width**2 * mlp_ratio)
        self.norm = RMSNorm(width)
        self.inner_width = width * mlp_ratio

    @torch.compiler.disable
    def forward(self, features: Tensor, states: Tensor) -> Tensor:
        """The features (N, P P, W) after this block.

        Args:
            features: (N, P P, W) of the pixels of N patches.
            states: (N, E).
        """
        count = self.num_at_a_time
        parts = zip(torch.split(features, count), torch.split(states, count), strict=True)
        if torch.is_grad_enabled():
            return torch.cat([recomputed(self._some, *part) for part in parts])
        return torch.cat([self._some(*part) for part in parts])

    def _some(self, features: Tensor, states: Tensor) -> Tensor:
        gate, value, last = self.param_generator(states).chunk(3, dim=-1)
        gate, value = (_unit_columns(one.unflatten(1, (-1, self.inner_width))) for one in (gate, value))
        last = _unit_columns(last.unflatten(1, (self.inner_width, -1)))
        x = self.norm(features)
        return features + torch.bmm(functional.silu(torch.bmm(x, gate)) * torch.bmm(x, value), last)


def _unit_columns(matrices: Tensor) -> Tensor:
    """`matrices` (N, rows, columns) with every column of length 1."""
    length = cast("Tensor", torch.linalg.vector_norm(matrices, dim=1, keepdim=True, dtype=torch.float32))
    return matrices * length.clamp_min(1e-12).reciprocal().to(matrices.dtype)


class NerfLastLayer(nn.Module):
    """A norm of each pixel's features, and a convolution of 3 x 3 pixels to colours."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = RMSNorm(width)
        self.conv = nn.Conv2d(width, COLOURS, 3, padding=1)


def params_from_shapes(shapes: Mapping[str, tuple[int, ...]]) -> RadianceParams:
    """The sizes of the network that parameters of these names and shapes make up.

    Raises:
        KeyError: a name that every Radiance has is missing.
    """
    hidden_size, colours, patch, _ = shapes["img_in_patch.weight"]
    width, inputs = shapes["nerf_image_embedder.embedder.0.weight"]
    made = shapes["nerf_blocks.0.param_generator.weight"][0]
    return RadianceParams(
        colours * patch**2,
        **trunk_sizes(shapes, hidden_size),
        patch_size=patch,
        nerf_hidden_size=width,
        nerf_mlp_ratio=made // (3 * width**2),
        nerf_depth=count_modules(shapes, "nerf_blocks."),
        nerf_max_freqs=round((inputs - colours) ** 0.5),
    )
