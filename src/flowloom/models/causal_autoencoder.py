"""The causal autoencoder of Wan 2.1, which Qwen-Image and Krea 2 share, and that of Wan 2.2 (TI2V-5B).

Images and clips to latents and back. Released files have Wan's names, diffusers' folders diffusers'. Latents
are normalized for each channel. The first frame has its own latents, then every four frames share them.
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
# Wan 2.2 groups its layers by level, as diffusers does; Wan 2.1 numbers them through.
_GROUPED = re.compile(r"\.(down|up)samples\.(\d+)\.\1samples\.(\d+)\.")
_RESIZES = ("resample", "time_conv")
_MEAN_48 = (
    -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542, 0.2813, 0.0891,
    0.1570, -0.0098, 0.0375, -0.1825, -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502,
    -0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230, -0.0313, -0.1649, 0.0117, 0.0723,
    -0.2839, -0.2083, -0.0520, 0.3748, 0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667,
)  # fmt: skip
_STD_48 = (
    0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894, 1.0901,
    0.6885, 0.6165, 0.8454, 0.4978, 0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659,
    0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944,
    0.5726, 1.2042, 0.5458, 1.6887, 0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744,
)  # fmt: skip
WAN22: dict[str, Any] = {
    "is_residual": True,
    "patch_size": 2,
    "scale_factor_spatial": 16,
    "latents_mean": list(_MEAN_48),
    "latents_std": list(_STD_48),
}
"""Settings of Wan 2.2's autoencoder that shapes do not show, from the vae/config.json of Wan2.2-TI2V-5B."""
TILED_FROM = 1280 * 720
"""Frames of more pixels are encoded and decoded in overlapping tiles, which bounds the memory."""


class CausalAutoencoder:
    """Pixels to normalized latents and back; frozen.

    Clips are (B, C, F, H, W); images (B, C, H, W) are clips of one frame.
    """

    def __init__(self, model: Any):
        self.model = model.eval().requires_grad_(False)
        self.factor: int = 2 ** (len(model.config["dim_mult"]) - 1) * (model.config.get("patch_size") or 1)
        """Pixels a side for each latent."""
        self.channels: int = model.config["z_dim"]

    def _scales(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = (latents.new_tensor(self.model.config[f"latents_{name}"]) for name in ("mean", "std"))
        return mean.view(-1, 1, 1, 1), std.view(-1, 1, 1, 1)

    def _spread(self, pixels: Tensor) -> Any:
        clip = pixels if pixels.ndim == 5 else pixels[:, :, None]
        if clip.shape[2] % 4 != 1:
            message = f"{clip.shape[2]} frames: the autoencoder would drop the last ones. It takes 4 n + 1."
            raise ValueError(message)
        self.model.use_tiling = clip.shape[-2] * clip.shape[-1] > TILED_FROM
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
        self.model.use_tiling = whole.shape[-2] * whole.shape[-1] * self.factor**2 > TILED_FROM
        pixels = self.model.decode(whole * std + mean, return_dict=False)[0]
        return pixels if latents.ndim == 5 else pixels[:, :, 0]


def load_causal_autoencoder(path: Path, device: torch.device, dtype: torch.dtype) -> CausalAutoencoder:
    """The autoencoder in `path`, a file as released or a file or folder in diffusers' names.

    Raises:
        WeightsError: it is missing, damaged, or no autoencoder of this kind.
    """
    weights = in_diffusers_names(open_weights(path).below(*_PREFIXES))
    with quiet_imports():
        from diffusers import AutoencoderKLQwenImage, AutoencoderKLWan
    settings = read_small_json(path / "config.json") if path.is_dir() else {}
    given = {key: settings[key] for key in ("latents_mean", "latents_std") if key in settings}
    is_wan22 = "encoder.down_blocks.0.resnets.0.conv1.weight" in weights
    try:
        sizes = (_wan22_sizes if is_wan22 else causal_sizes)(weights.shapes)
    except (KeyError, StopIteration) as error:
        raise WeightsError(f"{path}: not the VAE of Wan or Qwen-Image: parts are missing.") from error
    with torch.device("meta"):
        model = (AutoencoderKLWan if is_wan22 else AutoencoderKLQwenImage)(**sizes | given)
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
    name = _GROUPED.sub(_grouped, name)
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


def _grouped(found: re.Match[str]) -> str:
    kind, level, place = found.groups()
    is_resize = found.string[found.end() :].startswith(_RESIZES)
    return f".{kind}_blocks.{level}.{f'{kind}sampler' if is_resize else f'resnets.{place}'}."


def causal_sizes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """The arguments of AutoencoderKLQwenImage and AutoencoderKLWan, from diffusers' names and shapes.

    Raises:
        KeyError: a tensor is missing.
    """
    width, channels = shapes["encoder.conv_in.weight"][:2]
    levels, blocks = _count(shapes, "decoder.up_blocks."), _count(shapes, "decoder.up_blocks.0.resnets.") - 1
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


def _wan22_sizes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    width, levels = shapes["encoder.conv_in.weight"][0], _count(shapes, "encoder.down_blocks.")
    blocks = [f"encoder.down_blocks.{level}" for level in range(levels)]
    return WAN22 | {
        "base_dim": width,
        "decoder_base_dim": shapes["decoder.norm_out.gamma"][0],
        "z_dim": shapes["post_quant_conv.weight"][0],
        "dim_mult": [shapes[f"{block}.resnets.0.conv1.weight"][0] // width for block in blocks],
        "num_res_blocks": _count(shapes, "encoder.down_blocks.0.resnets."),
        "temperal_downsample": [f"{block}.downsampler.time_conv.weight" in shapes for block in blocks[:-1]],
        "in_channels": shapes["encoder.conv_in.weight"][1],
        "out_channels": shapes["decoder.conv_out.weight"][0],
    }


def _count(shapes: Mapping[str, tuple[int, ...]], start: str) -> int:
    return len({name[len(start) :].split(".")[0] for name in shapes if name.startswith(start)})
