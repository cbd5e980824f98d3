"""Kinds of networks and the names of tensors that identify them; torch is not imported.

Families state theirs. Here are the encoders that families share, and networks that no family trains.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

Kind = Literal[
    "network", "checkpoint", "vae", "text-encoder", "lora", "controlnet", "embedding", "pipeline", "pickle",
    "damaged", "unknown",
]  # fmt: skip
Shapes = Mapping[str, tuple[int, ...]]


class Architecture(NamedTuple):
    """A kind of network."""

    kind: Kind
    family: str
    """Name of the group of its versions."""
    description: str
    """Its name in messages."""


class Signature(NamedTuple):
    """Names of tensors that identify an architecture."""

    architecture: str
    starts: tuple[str, ...]
    """Starts of names; a file has a tensor for each."""
    size: tuple[str, int, int] | None = None
    """A tensor, one of its axes and its size there, which another network with these names does not have."""

    def fits(self, shapes: Shapes) -> bool:
        """True if tensors of these names and shapes are a network of the architecture."""
        if self.size:
            tensor, axis, size = self.size
            if shapes.get(tensor, ())[axis : axis + 1] != (size,):
                return False
        return all(any(name.startswith(start) for name in shapes) for start in self.starts)


class AdapterBase(NamedTuple):
    """Names of layers that identify the base of an adapter, with `_` for every `.`."""

    name: str
    word: str
    """The base's name in metadata and file names, a regular expression."""
    layers: tuple[str, ...]
    """An adapter with one of these is for this base, or for another family that has the same layers."""
    own_layers: tuple[str, ...]
    """Layers that no other family has."""
    shared_layers: tuple[str, ...] = ()
    """Like `layers`, where no other network has them."""


ENCODERS = {
    "vae-sd": Architecture("vae", "VAE of 4 channels", "a VAE of SD 1.5 or SDXL (4 channels)"),
    "vae-sd15": Architecture("vae", "VAE of 4 channels", "SD 1.5's VAE (4 channels)"),
    "vae-sdxl": Architecture("vae", "VAE of 4 channels", "SDXL's VAE (4 channels)"),
    "vae-flux": Architecture("vae", "VAE of 16 channels", "a VAE of 16 channels, as FLUX has it"),
    "vae-sd3": Architecture("vae", "VAE of 16 channels", "SD 3's VAE"),
    "vae-flux2": Architecture("vae", "VAE of 32 channels", "FLUX.2's VAE (32 channels)"),
    "vae-wan": Architecture("vae", "VAE of clips", "the VAE of Wan 2.1 and Qwen-Image (16 channels)"),
    "vae-wan22": Architecture("vae", "VAE of clips", "the VAE of Wan 2.2 TI2V (48 channels)"),
    "vae-other": Architecture("vae", "VAE", "a VAE of another number of channels"),
    "t5-xxl": Architecture("text-encoder", "T5", "T5 XXL"),
    "t5": Architecture("text-encoder", "T5", "a T5 of another size than XXL"),
    "umt5": Architecture("text-encoder", "T5", "UMT5, T5 with another vocabulary"),
    "clip-l": Architecture("text-encoder", "CLIP", "CLIP L"),
    "clip-g": Architecture("text-encoder", "CLIP", "CLIP G"),
    "clip-h": Architecture("text-encoder", "CLIP", "CLIP H"),
    "qwen3": Architecture("text-encoder", "Language models", "Qwen3"),
    "qwen3-vl": Architecture("text-encoder", "Language models", "Qwen3-VL"),
    "qwen2.5": Architecture("text-encoder", "Language models", "Qwen2.5 or Qwen2.5-VL"),
    "gemma2": Architecture("text-encoder", "Language models", "Gemma 2"),
    "language-model": Architecture("text-encoder", "Language models", "a language model"),
}
VAES_BY_CHANNELS = {4: "vae-sd", 16: "vae-flux", 32: "vae-flux2"}
VIDEO_VAES_BY_CHANNELS = {16: "vae-wan", 48: "vae-wan22"}
VAES_BY_SCALING = {0.18215: "vae-sd15", 0.13025: "vae-sdxl", 0.3611: "vae-flux", 1.5305: "vae-sd3"}
"""By the scaling_factor in diffusers' config.json; their shapes are the same."""
CLIPS_BY_WIDTH = {768: "clip-l", 1280: "clip-g", 1024: "clip-h"}

OTHERS = {
    "sd3": Architecture("network", "SD 3", "Stable Diffusion 3"),
    "wan-i2v": Architecture("network", "Wan", "an image-to-video network of Wan"),
    "wan-vace": Architecture("network", "Wan", "Wan VACE"),
    "sdxl": Architecture("network", "SDXL", "SDXL"),
    "sdxl-refiner": Architecture("network", "SDXL", "SDXL's refiner"),
    "sd15": Architecture("network", "SD 1.5", "Stable Diffusion 1.5"),
    "sd2": Architecture("network", "SD 2", "Stable Diffusion 2"),
    "controlnet": Architecture("controlnet", "ControlNet", "a ControlNet"),
    "embedding": Architecture("embedding", "Embeddings", "a textual inversion"),
}
"""Networks that no family trains."""
OTHER_SIGNATURES = (
    Signature("controlnet", ("controlnet_",)),
    Signature("controlnet", ("zero_convs.",)),
    Signature("controlnet", ("control_model.",)),
    Signature("wan-vace", ("vace_blocks.",)),
    Signature("wan-i2v", ("patch_embedding.", "blocks.0."), ("patch_embedding.weight", 1, 36)),
    Signature("sd3", ("joint_blocks.0.x_block.",)),
    Signature("sd3", ("transformer_blocks.0.attn.add_k_proj.", "pos_embed.proj.")),
)
UNETS = {768: "sd15", 1024: "sd2", 1280: "sdxl-refiner", 2048: "sdxl"}
"""By the width of the text that cross-attention sees."""
SD3_WIDTHS = {1536, 2432}
"""Of SD 3's and 3.5's networks."""
OTHER_BASE_WORDS = (
    ("sd3", r"sd-?_?3|stable-diffusion-3"),
    ("sdxl", r"sd_?xl|stable-diffusion-xl"),
    ("sd2", r"sd_?v?2|stable-diffusion-v2"),
    ("sd15", r"sd_?v?1|stable-diffusion-v1"),
)
"""Bases of adapters by their names in metadata and file names, as regular expressions."""
