"""Chroma1-Radiance from a file, and the pixels that it works on in place of latents."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from flowloom.errors import WeightsError
from flowloom.models.chroma import NO_WEIGHTS, PREFIXES, Loader
from flowloom.models.weights import Assign, Weights, assign_weights, open_weights
from flowloom.nn.radiance import COLOURS, Radiance, RadianceParams, params_from_shapes

PATCH = 16
_VERSIONS = {
    "__32x32__": "a version with patches of 32 pixels",
    "nerf_final_layer.": "an early version, whose last layer is not a convolution",
}
"""Marks of versions that are not read."""


class Pixels:
    """The codec of networks that work on pixels: images stay what they are."""

    factor, channels = 1, COLOURS

    def encode(self, pixels: Tensor) -> Tensor:
        """`pixels` (B, 3, H, W) in [-1, 1]."""
        return pixels

    def encode_spread(self, pixels: Tensor) -> Tensor:
        """Pixels and a log-variance of almost no noise, (B, 2, 3, H, W)."""
        return torch.stack((pixels, torch.full_like(pixels, -30.0)), dim=1)

    def decode(self, latents: Tensor) -> Tensor:
        """`latents`, which are pixels."""
        return latents


def load_radiance(
    path: Path, device: torch.device, dtype: torch.dtype, assign: Assign = assign_weights
) -> Radiance:
    """The network in `path`, on `device` in `dtype`, with its weights put there by `assign`.

    Raises:
        WeightsError: the file is missing, damaged, or no Radiance of patches of 16 pixels.
    """
    weights = open_radiance(path)
    params = _params(weights)
    with torch.device("meta"):
        network = Radiance(params)
    assign(network, weights, device, dtype)
    return network


def read_radiance_params(path: Path) -> RadianceParams:
    """The sizes of the network in `path`, from its header; errors are those of `load_radiance`."""
    return _params(open_radiance(path))


def open_radiance(path: Path) -> Weights:
    """The tensors in `path` by the checkpoint's names, not read yet.

    Raises:
        WeightsError: the file is missing, damaged, or of a version that is not read.
    """
    weights = open_weights(Path(path)).below(*PREFIXES)
    for mark, version in _VERSIONS.items():
        if any(name.startswith(mark) for name in weights):
            raise WeightsError(f"{path}: this is {version}. Use Chroma1-Radiance 0.4 or its x0 version.")
    return weights.gathered({name: (name,) for name in weights if name not in NO_WEIGHTS})


LOADER = Loader(open_radiance, read_radiance_params, load_radiance)


def _params(weights: Weights) -> RadianceParams:
    try:
        params = params_from_shapes(weights.shapes)
    except KeyError as error:
        message = f"{weights.path}: not a Chroma Radiance network: it has no {error.args[0]}."
        raise WeightsError(message) from error
    if params.patch_size != PATCH:
        raise WeightsError(
            f"{weights.path}: its patches have {params.patch_size} pixels on each side, and only {PATCH} can "
            "be read. Use Chroma1-Radiance 0.4 or its x0 version."
        )
    return params
