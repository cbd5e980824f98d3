"""The FLUX autoencoder: diffusers' network behind Black Forest Labs' names."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from flowloom.errors import WeightsError
from flowloom.import_warnings import quiet_imports
from flowloom.models.weights import Weights, assign_weights, open_weights, save_weights

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

SHIFT, SCALE = 0.1159, 0.3611
"""FLUX: latents = (mean - SHIFT) * SCALE."""
GROUPS = "norm_num_groups"
"""Metadata key: groups of the group norms, the only size that shapes do not show."""

PREFIXES = ("first_stage_model.", "vae.")
_BFL, _DIFFUSERS = 0, 1
# Modules whose names differ, (BFL's, diffusers'), with {} for a number.
_NAMES = (
    (".down.{}.block.{}.", ".down_blocks.{}.resnets.{}."),
    (".down.{}.downsample.", ".down_blocks.{}.downsamplers.0."),
    (".up.{}.block.{}.", ".up_blocks.{}.resnets.{}."),
    (".up.{}.upsample.", ".up_blocks.{}.upsamplers.0."),
    (".mid.block_1.", ".mid_block.resnets.0."),
    (".mid.block_2.", ".mid_block.resnets.1."),
    (".mid.attn_1.norm.", ".mid_block.attentions.0.group_norm."),
    (".mid.attn_1.q.", ".mid_block.attentions.0.to_q."),
    (".mid.attn_1.k.", ".mid_block.attentions.0.to_k."),
    (".mid.attn_1.v.", ".mid_block.attentions.0.to_v."),
    (".mid.attn_1.proj_out.", ".mid_block.attentions.0.to_out.0."),
    (".norm_out.", ".conv_norm_out."),
    (".nin_shortcut.", ".conv_shortcut."),
)


class Autoencoder:
    """Pixels to FLUX latents and back; frozen."""

    def __init__(self, model: AutoencoderKL):
        self.model = model.eval().requires_grad_(False)
        self.factor: int = 2 ** (len(model.config["block_out_channels"]) - 1)
        """Pixels a side for each latent."""
        self.channels: int = model.config["latent_channels"]

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """Latents (B, C, H/factor, W/factor) of `pixels` (B, 3, H, W) in [-1, 1]: the mean, not a draw."""
        mean = self.model.encode(pixels.to(self.model.dtype), return_dict=False)[0].mode()
        return (mean - SHIFT) * SCALE

    @torch.no_grad()
    def encode_spread(self, pixels: Tensor) -> Tensor:
        """Mean and log-variance of the latents, (B, 2, C, H/factor, W/factor), of `pixels` as in `encode`."""
        spread = self.model.encode(pixels.to(self.model.dtype), return_dict=False)[0]
        return torch.stack(((spread.mean - SHIFT) * SCALE, spread.logvar + 2 * math.log(SCALE)), dim=1)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Pixels (B, 3, H, W), about [-1, 1], of `latents` (B, C, H/factor, W/factor)."""
        unscaled = latents.to(self.model.dtype) / SCALE + SHIFT
        return self.model.decode(unscaled, return_dict=False)[0]  # pyright: ignore[reportArgumentType]


def load_autoencoder(path: Path, device: torch.device, dtype: torch.dtype) -> Autoencoder:
    """The autoencoder in `path`: `ae.safetensors` as released, or a file or folder in diffusers' names.

    Raises:
        WeightsError: it is missing, damaged, or no autoencoder of this kind.
    """
    weights = in_diffusers_names(open_weights(path).below(*PREFIXES))
    with quiet_imports():
        from diffusers import AutoencoderKL
    try:
        with torch.device("meta"):
            model = AutoencoderKL(**autoencoder_sizes(weights))
    except KeyError as error:
        raise WeightsError(f"{path}: no {error.args[0]} in it: not an autoencoder.") from error
    except ValueError as error:
        raise WeightsError(f"{path}: {error}. State its {GROUPS} in the file's metadata.") from error
    assign_weights(model, weights, device, dtype)
    return Autoencoder(model)


def save_autoencoder(path: Path, model: AutoencoderKL) -> None:
    """Write `model` to `path` with Black Forest Labs' names, as `ae.safetensors` is released."""
    state = model.state_dict()
    levels = len(model.config["block_out_channels"])
    tensors = {
        _renamed(name, _DIFFUSERS, _BFL, levels): tensor[:, :, None, None]
        if _is_attention(name) and tensor.ndim == 2
        else tensor
        for name, tensor in state.items()
    }
    save_weights(path, tensors, {GROUPS: str(model.config[GROUPS])})


def in_diffusers_names(weights: Weights) -> Weights:
    """`weights` of an autoencoder by diffusers' names."""
    levels = _count(weights, r"encoder\.down\.(\d+)\.")
    renamed = weights.gathered({_renamed(name, _BFL, _DIFFUSERS, levels): (name,) for name in weights})
    # Linear layers, released as convolutions of one pixel.
    return renamed.reshaped(
        {name: shape[:2] for name, shape in renamed.shapes.items() if _is_attention(name) and len(shape) == 4}
    )


def _is_attention(name: str) -> bool:
    return ".attentions.0.to_" in name


def _renamed(name: str, source: int, target: int, levels: int) -> str:
    for pair in _NAMES:
        pattern = re.escape(pair[source]).replace(r"\{\}", r"(\d+)")
        found = re.search(pattern, name)
        if found:
            numbers = [int(number) for number in found.groups()]
            if pair[_BFL].startswith(".up."):
                # BFL counts levels from the image, diffusers from the latents.
                numbers[0] = levels - 1 - numbers[0]
            name = name.replace(found[0], pair[target].format(*numbers))
    return name


def _count(weights: Weights, pattern: str) -> int:
    return len({found[1] for name in weights if (found := re.match(pattern, name))})


def autoencoder_sizes(weights: Weights) -> dict[str, Any]:
    """The arguments of AutoencoderKL, from names and shapes in diffusers' spelling.

    Raises:
        KeyError: a tensor is missing.
    """
    shapes = weights.shapes
    levels = _count(weights, r"encoder\.down_blocks\.(\d+)\.")
    return {
        "in_channels": shapes["encoder.conv_in.weight"][1],
        "out_channels": shapes["decoder.conv_out.weight"][0],
        "block_out_channels": tuple(
            shapes[f"encoder.down_blocks.{level}.resnets.0.conv1.weight"][0] for level in range(levels)
        ),
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "layers_per_block": _count(weights, r"encoder\.down_blocks\.0\.resnets\.(\d+)\."),
        "latent_channels": shapes["decoder.conv_in.weight"][1],
        "use_quant_conv": "quant_conv.weight" in shapes,
        "use_post_quant_conv": "post_quant_conv.weight" in shapes,
        "mid_block_add_attention": any(_is_attention(name) for name in shapes),
        "norm_num_groups": _groups(weights),
    }


def _groups(weights: Weights) -> int:
    if GROUPS in weights.metadata:
        return int(weights.metadata[GROUPS])
    beside = weights.path / "config.json"
    settings: dict[str, Any] = json.loads(beside.read_text(encoding="utf-8")) if beside.is_file() else {}
    return int(settings.get(GROUPS, 32))
