"""The causal autoencoder of Wan 2.1, which Qwen-Image and Krea 2 share: images and clips to latents and back.

Released files have Wan's names, diffusers' folders diffusers'. Latents are normalized for each channel.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowloom.errors import WeightsError
from flowloom.import_warnings import quiet_imports
from flowloom.models.header import read_small_json
from flowloom.models.weights import Weights, assign_weights, open_weights

_PREFIXES = ("first_stage_model.", "vae.")
# Names of modules in Wan's file and in diffusers'.
_PARTS = (
    ("encoder.middle.0", "encoder.mid_block.resnets.0"),
    ("encoder.middle.1", "encoder.mid_block.attentions.0"),
    ("encoder.middle.2", "encoder.mid_block.resnets.1"),
    ("decoder.middle.0", "decoder.mid_block.resnets.0"),
    ("decoder.middle.1", "decoder.mid_block.attentions.0"),
    ("decoder.middle.2", "decoder.mid_block.resnets.1"),
    ("encoder.head.0", "encoder.norm_out"),
    ("encoder.head.2", "encoder.conv_out"),
    ("decoder.head.0", "decoder.norm_out"),
    ("decoder.head.2", "decoder.conv_out"),
    ("encoder.conv1", "encoder.conv_in"),
    ("decoder.conv1", "decoder.conv_in"),
    ("encoder.downsamples", "encoder.down_blocks"),
    ("conv1", "quant_conv"),
    ("conv2", "post_quant_conv"),
)
_LAYERS = (
    (".residual.0.", ".norm1."),
    (".residual.2.", ".conv1."),
    (".residual.3.", ".norm2."),
    (".residual.6.", ".conv2."),
    (".shortcut.", ".conv_shortcut."),
)
_UP = re.compile(r"decoder\.upsamples\.(\d+)\.")


class CausalAutoencoder:
    """Pixels to normalized latents and back; frozen.

    Clips are (B, C, F, H, W); images (B, C, H, W) are clips of one frame.
    """

    def __init__(self, model: Any):
        self.model = model.eval().requires_grad_(False)
        self.factor: int = 2 ** (len(model.config["dim_mult"]) - 1)
        """Pixels a side for each latent."""
        self.channels: int = model.config["z_dim"]

    def _scales(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = (latents.new_tensor(self.model.config[f"latents_{name}"]) for name in ("mean", "std"))
        return mean.view(-1, 1, 1, 1), std.view(-1, 1, 1, 1)

    def _spread(self, pixels: Tensor) -> Any:
        clip = pixels if pixels.ndim == 5 else pixels[:, :, None]
        return self.model.encode(clip.to(self.model.dtype), return_dict=False)[0]

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """Latents of `pixels` in [-1, 1], with as many dimensions: the mean, not a draw."""
        latents = self._spread(pixels).mode()
        mean, std = self._scales(latents)
        latents = (latents - mean) / std
        return latents if pixels.ndim == 5 else latents[:, :, 0]

    @torch.no_grad()
    def encode_spread(self, pixels: Tensor) -> Tensor:
        """Mean and log-variance of the latents, (B, 2, C, ...), of `pixels` as in `encode`."""
        spread = self._spread(pixels)
        mean, std = self._scales(spread.mean)
        both = torch.stack(((spread.mean - mean) / std, spread.logvar - 2 * std.log()), dim=1)
        return both if pixels.ndim == 5 else both[:, :, :, 0]

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Pixels in [-1, 1] of `latents`, with as many dimensions."""
        whole = latents.to(self.model.dtype)
        whole = whole if latents.ndim == 5 else whole[:, :, None]
        mean, std = self._scales(whole)
        pixels = self.model.decode(whole * std + mean, return_dict=False)[0]
        return pixels if latents.ndim == 5 else pixels[:, :, 0]


def load_causal_autoencoder(path: Path, device: torch.device, dtype: torch.dtype) -> CausalAutoencoder:
    """The autoencoder in `path`, a file as released or a file or folder in diffusers' names.

    Raises:
        WeightsError: it is missing, damaged, or no autoencoder of this kind.
    """
    weights = in_diffusers_names(open_weights(path).below(*_PREFIXES))
    with quiet_imports():
        from diffusers import AutoencoderKLQwenImage
    settings = read_small_json((path if path.is_dir() else path.parent) / "config.json")
    normalization = {
        key: settings[key] for key in ("latents_mean", "latents_std") if key in settings and path.is_dir()
    }
    try:
        sizes = causal_sizes(weights.shapes)
    except (KeyError, StopIteration) as error:
        raise WeightsError(f"{path}: not the VAE of Wan 2.1 or Qwen-Image: parts are missing.") from error
    with torch.device("meta"):
        model = AutoencoderKLQwenImage(**sizes, **normalization)
    assign_weights(model, weights, device, dtype)
    return CausalAutoencoder(model)


def in_diffusers_names(weights: Weights) -> Weights:
    """`weights` under diffusers' names; those that have them already are unchanged."""
    if not any(name.startswith("encoder.downsamples.") for name in weights):
        return weights
    # A level of the decoder has residual blocks, then the layer that doubles the size.
    level = 1 + min(int(found[1]) for name in weights if ".resample." in name and (found := _UP.match(name)))
    return weights.gathered({_renamed(name, level): (name,) for name in weights})


def _renamed(name: str, level: int) -> str:
    found = _UP.match(name)
    if found:
        block, place = divmod(int(found[1]), level)
        part = f"resnets.{place}" if place < level - 1 else "upsamplers.0"
        name = f"decoder.up_blocks.{block}.{part}.{name[found.end() :]}"
    for theirs, ours in _PARTS:
        if name.startswith(f"{theirs}."):
            name = f"{ours}{name.removeprefix(theirs)}"
            break
    for theirs, ours in _LAYERS:
        name = name.replace(theirs, ours)
    return name


def causal_sizes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """The arguments of AutoencoderKLQwenImage and AutoencoderKLWan, from diffusers' names and shapes.

    Raises:
        KeyError: a tensor is missing.
    """
    width, channels = shapes["encoder.conv_in.weight"][:2]

    def count(start: str) -> int:
        numbers = {name[len(start) :].split(".")[0] for name in shapes if name.startswith(start)}
        return len(numbers)

    levels, blocks = count("decoder.up_blocks."), count("decoder.up_blocks.0.resnets.") - 1
    first = [f"encoder.down_blocks.{level * (blocks + 1)}" for level in range(levels)]
    last = [f"encoder.down_blocks.{level * (blocks + 1) + blocks}" for level in range(levels - 1)]
    return {
        "base_dim": width,
        "z_dim": shapes["post_quant_conv.weight"][0],
        "dim_mult": [shapes[f"{block}.conv1.weight"][0] // width for block in first],
        "num_res_blocks": blocks,
        "temperal_downsample": [f"{block}.time_conv.weight" in shapes for block in last],
        "input_channels": channels,
    }
