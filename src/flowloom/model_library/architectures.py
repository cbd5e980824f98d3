"""The network in a file, identified by the names and shapes of its tensors.

The marks are of files as released, as trainers and ComfyUI write them, and of diffusers' folders. What no
mark fits is of an unknown kind, and nothing is said against it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
    words: str
    """Its name in messages."""


ARCHITECTURES: dict[str, Architecture] = {
    "chroma": Architecture("network", "Chroma", "Chroma"),
    "chroma-radiance": Architecture("network", "Chroma", "Chroma Radiance, which works on pixels"),
    "flux-dev": Architecture("network", "FLUX.1", "FLUX.1 dev"),
    "flux-schnell": Architecture("network", "FLUX.1", "FLUX.1 schnell"),
    "flux2": Architecture("network", "FLUX.2", "FLUX.2"),
    "sd3": Architecture("network", "SD 3", "Stable Diffusion 3"),
    "lumina2": Architecture("network", "Lumina", "Lumina Image 2"),
    "z-image": Architecture("network", "Z-Image", "Z-Image"),
    "sdxl": Architecture("network", "SDXL", "SDXL"),
    "sdxl-refiner": Architecture("network", "SDXL", "SDXL's refiner"),
    "sd15": Architecture("network", "SD 1.5", "Stable Diffusion 1.5"),
    "sd2": Architecture("network", "SD 2", "Stable Diffusion 2"),
    "controlnet": Architecture("controlnet", "ControlNet", "a ControlNet"),
    "vae-sd": Architecture("vae", "VAE of 4 channels", "a VAE of SD 1.5 or SDXL (4 channels)"),
    "vae-sd15": Architecture("vae", "VAE of 4 channels", "SD 1.5's VAE (4 channels)"),
    "vae-sdxl": Architecture("vae", "VAE of 4 channels", "SDXL's VAE (4 channels)"),
    "vae-flux": Architecture("vae", "VAE of 16 channels", "a VAE of 16 channels, as FLUX has it"),
    "vae-sd3": Architecture("vae", "VAE of 16 channels", "SD 3's VAE"),
    "vae-flux2": Architecture("vae", "VAE of 32 channels", "FLUX.2's VAE (32 channels)"),
    "vae-other": Architecture("vae", "VAE", "a VAE of another number of channels"),
    "t5-xxl": Architecture("text-encoder", "T5", "T5 XXL"),
    "t5": Architecture("text-encoder", "T5", "a T5 of another size than XXL"),
    "umt5": Architecture("text-encoder", "T5", "UMT5, T5 with another vocabulary"),
    "clip-l": Architecture("text-encoder", "CLIP", "CLIP L"),
    "clip-g": Architecture("text-encoder", "CLIP", "CLIP G"),
    "clip-h": Architecture("text-encoder", "CLIP", "CLIP H"),
    "language-model": Architecture("text-encoder", "Language models", "a language model"),
    "embedding": Architecture("embedding", "Embeddings", "a textual inversion"),
}


@dataclass(frozen=True)
class Found:
    """One network in a file."""

    architecture: str
    width: int | None = None
    """Its interface: the text width of Chroma, the width of T5's states, the channels of a VAE."""


class _Mark(NamedTuple):
    architecture: str
    beginnings: tuple[str, ...]
    """Of names: for each of these there is one."""


_NETWORK_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "")
_NETWORKS = (
    _Mark("controlnet", ("controlnet_",)),
    _Mark("controlnet", ("zero_convs.",)),
    _Mark("controlnet", ("control_model.",)),
    _Mark("chroma-radiance", ("distilled_guidance_layer.", "nerf_")),
    _Mark("chroma", ("distilled_guidance_layer.",)),
    _Mark("flux2", ("double_stream_modulation_img.",)),
    _Mark("flux-dev", ("double_blocks.0.img_attn.qkv.", "guidance_in.")),
    _Mark("flux-schnell", ("double_blocks.0.img_attn.qkv.", "vector_in.")),
    _Mark("flux-dev", ("single_transformer_blocks.", "time_text_embed.guidance_embedder.")),
    _Mark("flux-schnell", ("single_transformer_blocks.", "time_text_embed.timestep_embedder.")),
    _Mark("sd3", ("joint_blocks.0.x_block.",)),
    _Mark("sd3", ("transformer_blocks.0.attn.add_k_proj.", "pos_embed.proj.")),
    _Mark("z-image", ("noise_refiner.0.", "cap_pad_token")),
    _Mark("lumina2", ("noise_refiner.0.", "cap_embedder.")),
    _Mark("lumina2", ("noise_refiner.0.", "time_caption_embed.")),
)
UNETS = {768: "sd15", 1024: "sd2", 1280: "sdxl-refiner", 2048: "sdxl"}
"""By the width of the text that cross-attention sees."""
SD3_WIDTHS = {1536, 2432}
"""Of SD 3's and 3.5's networks."""
_VAE_PREFIXES = ("first_stage_model.", "vae.", "")
_VAES = {4: "vae-sd", 16: "vae-flux", 32: "vae-flux2"}
_T5_PREFIXES = ("text_encoders.t5xxl.transformer.", "t5xxl.transformer.", "")
_T5_MARK = "encoder.block.0.layer.0.SelfAttention.q.weight"
_T5_WORDS = ("shared.weight", "encoder.embed_tokens.weight")
_UMT5_VOCABULARY = 256_384
_CLIPS = {768: "clip-l", 1280: "clip-g", 1024: "clip-h"}
_CLIP_MARKS = (
    "text_model.encoder.layers.0.self_attn.q_proj.weight",
    "transformer.resblocks.0.attn.out_proj.weight",
)
_EMBEDDINGS = {"emb_params", "clip_l", "clip_g", "t5xxl"}
_LANGUAGE_MARK = "model.layers.0.self_attn.q_proj.weight"


def recognise(shapes: Shapes) -> list[Found]:
    """The networks whose tensors are among `shapes`, the main one first; of adapters, see adapters.py."""
    if shapes and shapes.keys() <= _EMBEDDINGS:
        return [Found("embedding")]
    candidates = (_network(shapes), _vae(shapes), _t5(shapes), *_clips(shapes), _language_model(shapes))
    return [found for found in candidates if found]


def _network(shapes: Shapes) -> Found | None:
    prefix = next(prefix for prefix in _NETWORK_PREFIXES if _has(shapes, prefix))
    names = [name.removeprefix(prefix) for name in shapes if name.startswith(prefix)]
    for mark in _NETWORKS:
        if all(any(name.startswith(begin) for name in names) for begin in mark.beginnings):
            text = shapes.get(f"{prefix}txt_in.weight") or shapes.get(f"{prefix}context_embedder.weight")
            return Found(mark.architecture, text[-1] if text else None)
    return _unet(shapes, names, prefix)


def _unet(shapes: Shapes, names: Sequence[str], prefix: str) -> Found | None:
    if not any(name.startswith(("input_blocks.0.", "down_blocks.0.")) for name in names):
        return None
    seen = next((shapes[prefix + name][-1:] for name in names if name.endswith("attn2.to_k.weight")), ())
    return Found(UNETS[seen[0]], seen[0]) if seen and seen[0] in UNETS else None


def _vae(shapes: Shapes) -> Found | None:
    for prefix in _VAE_PREFIXES:
        first = shapes.get(f"{prefix}decoder.conv_in.weight")
        if first and len(first) == 4:
            return Found(_VAES.get(first[1], "vae-other"), first[1])
    return None


def _t5(shapes: Shapes) -> Found | None:
    for prefix in _T5_PREFIXES:
        query = shapes.get(f"{prefix}{_T5_MARK}")
        if query and len(query) == 2:
            rows = [shapes[prefix + name][0] for name in _T5_WORDS if shapes.get(prefix + name)]
            if _UMT5_VOCABULARY in rows:
                return Found("umt5", query[1])
            return Found("t5-xxl" if query[1] == 4096 else "t5", query[1])
    return None


def _clips(shapes: Shapes) -> list[Found]:
    widths = [
        shape[-1]
        for name, shape in shapes.items()
        if name.endswith(_CLIP_MARKS) and "vision" not in name and "visual" not in name and shape
    ]
    return [Found(_CLIPS[width], width) for width in dict.fromkeys(widths) if width in _CLIPS]


def _language_model(shapes: Shapes) -> Found | None:
    query = shapes.get(_LANGUAGE_MARK)
    return Found("language-model", query[-1]) if query else None


def _has(shapes: Shapes, prefix: str) -> bool:
    return any(name.startswith(prefix) for name in shapes) or not prefix


def vae_by_scaling(scaling: object) -> str | None:
    """The VAE that diffusers' config.json says it is, by its scaling_factor: shapes do not tell."""
    return {0.18215: "vae-sd15", 0.13025: "vae-sdxl", 0.3611: "vae-flux", 1.5305: "vae-sd3"}.get(
        scaling if isinstance(scaling, float) else 0.0
    )
