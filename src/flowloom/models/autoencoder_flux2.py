"""FLUX.2's autoencoder: 2 x 2 patches of 32 channels are latents of 128, normalised by running statistics."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from einops import rearrange
from torch import Tensor

from flowloom.errors import WeightsError
from flowloom.import_warnings import quiet_imports
from flowloom.models.autoencoder import PREFIXES, autoencoder_sizes, in_diffusers_names
from flowloom.models.header import read_small_json
from flowloom.models.weights import assign_weights, open_weights

if TYPE_CHECKING:
    from diffusers import AutoencoderKLFlux2

    from flowloom.models.weights import Weights

EPS = 1e-4
"""Added to the variance of the latents; Black Forest Labs' value."""
_MEAN, _VARIANCE = "bn.running_mean", "bn.running_var"
_PATCHES = "B (C dh dw) h w"


class Flux2Autoencoder:
    """Pixels to FLUX.2's latents and back; frozen.

    Args:
        mean, deviation: (C,) of the latents, in float32: the network may be in bfloat16.
    """

    def __init__(self, model: AutoencoderKLFlux2, mean: Tensor, deviation: Tensor):
        self.model = model.eval().requires_grad_(False)
        self._mean, self._deviation = mean.view(-1, 1, 1), deviation.view(-1, 1, 1)
        self.factor: int = 2 ** len(model.config["block_out_channels"])
        """Pixels a side for each latent."""
        self.channels: int = 4 * model.config["latent_channels"]

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """Latents (B, C, H/factor, W/factor) of `pixels` (B, 3, H, W) in [-1, 1]: the mean, not a draw."""
        return self._normalised(_in_patches(self._spread(pixels).mode())).to(self.model.dtype)

    @torch.no_grad()
    def encode_spread(self, pixels: Tensor) -> Tensor:
        """Mean and log-variance of the latents, (B, 2, C, H/factor, W/factor), of `pixels` as in `encode`."""
        spread = self._spread(pixels)
        logvar = _in_patches(spread.logvar) - 2 * self._deviation.log()
        return torch.stack((self._normalised(_in_patches(spread.mean)), logvar), dim=1).to(self.model.dtype)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Pixels (B, 3, H, W), about [-1, 1], of `latents` (B, C, H/factor, W/factor)."""
        patches = latents * self._deviation + self._mean
        planes = rearrange(patches, f"{_PATCHES} -> B C (h dh) (w dw)", dh=2, dw=2)
        return self.model.decode(planes.to(self.model.dtype), return_dict=False)[0]  # pyright: ignore[reportArgumentType]

    def _spread(self, pixels: Tensor) -> Any:
        return self.model.encode(pixels.to(self.model.dtype), return_dict=False)[0]

    def _normalised(self, latents: Tensor) -> Tensor:
        return (latents - self._mean) / self._deviation


def _in_patches(planes: Tensor) -> Tensor:
    return rearrange(planes, f"B C (h dh) (w dw) -> {_PATCHES}", dh=2, dw=2)


def load_flux2_autoencoder(path: Path, device: torch.device, dtype: torch.dtype) -> Flux2Autoencoder:
    """The autoencoder in `path`: a file as released or as ComfyUI uses it, or diffusers' folder.

    Raises:
        WeightsError: it is missing, damaged, or no autoencoder of this kind.
    """
    weights = open_weights(path).below(*PREFIXES)
    weights = in_diffusers_names(weights.gathered({_outside(name): (name,) for name in weights}))
    with quiet_imports():
        from diffusers import AutoencoderKLFlux2
    try:
        statistics = weights[_MEAN].float(), weights[_VARIANCE].float()
        with torch.device("meta"):
            model = AutoencoderKLFlux2(**_sizes(weights, path))
    except KeyError as error:
        raise WeightsError(f"{path}: no {error.args[0]} in it: not FLUX.2's autoencoder.") from error
    # Of the batch norm only its statistics are used, and these are kept in float32.
    model.set_submodule("bn", torch.nn.Identity())
    weights = weights.gathered({name: (name,) for name in weights if not name.startswith("bn.")})
    assign_weights(model, weights, device, dtype)
    mean, variance = (each.to(device) for each in statistics)
    return Flux2Autoencoder(model, mean, torch.sqrt(variance + model.config["batch_norm_eps"]))


def _outside(name: str) -> str:
    """Black Forest Labs has the two convolutions around the latents inside of encoder and decoder."""
    return name.replace("encoder.quant_conv.", "quant_conv.").replace("decoder.post_quant", "post_quant")


def _sizes(weights: Weights, path: Path) -> dict[str, Any]:
    """The arguments of AutoencoderKLFlux2; the decoder may be narrower than the encoder."""
    sizes, shapes = autoencoder_sizes(weights), weights.shapes
    levels = len(sizes["block_out_channels"])
    sizes["decoder_block_out_channels"] = tuple(
        shapes[f"decoder.up_blocks.{levels - 1 - level}.resnets.0.conv1.weight"][0] for level in range(levels)
    )
    beside = read_small_json(path / "config.json") if path.is_dir() else {}
    return sizes | {"batch_norm_eps": beside.get("batch_norm_eps", EPS)}
