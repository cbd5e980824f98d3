"""The network in a file, identified by the names and shapes of its tensors.

Signatures are of files as released, as trainers and ComfyUI write them, and of diffusers' folders. A file
that no signature fits is of an unknown kind and is not rejected.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from flowloom.models.architectures import (
    CLIPS_BY_WIDTH,
    ENCODERS,
    OTHER_SIGNATURES,
    OTHERS,
    UNETS,
    VAES_BY_CHANNELS,
    VAES_BY_SCALING,
    VIDEO_VAES_BY_CHANNELS,
    Architecture,
    Shapes,
    Signature,
)
from flowloom.models.family import families


@dataclass(frozen=True)
class Found:
    """One network in a file."""

    architecture: str
    width: int | None = None
    """Its interface: the text width of a network, the width of T5's states, the channels of a VAE."""


@cache
def architectures() -> Mapping[str, Architecture]:
    """Every kind of network that can be recognized, by its name."""
    trained = {name: kind for family in families().values() for name, kind in family.architectures.items()}
    return trained | OTHERS | ENCODERS


@cache
def _signatures() -> tuple[Signature, ...]:
    trained = (signature for family in families().values() for signature in family.signatures)
    return (*OTHER_SIGNATURES, *trained)


_NETWORK_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "")
_TEXT_LAYERS = (
    "txt_in",
    "context_embedder",
    "cap_embedder.1",
    "time_caption_embed.caption_embedder.1",
)
"""Layers of networks that a caption's states enter."""
_VAE_PREFIXES = ("first_stage_model.", "vae.", "")
_T5_PREFIXES = ("text_encoders.t5xxl.transformer.", "t5xxl.transformer.", "")
_T5_MARK = "encoder.block.0.layer.0.SelfAttention.q.weight"
_T5_WORDS = ("shared.weight", "encoder.embed_tokens.weight")
_UMT5_VOCABULARY, _WANS_WORDS = 256_384, "token_embedding.weight"
_CLIP_MARKS = (
    "text_model.encoder.layers.0.self_attn.q_proj.weight",
    "transformer.resblocks.0.attn.out_proj.weight",
)
_EMBEDDINGS = {"emb_params", "clip_l", "clip_g", "t5xxl"}
_LANGUAGE_MARK = re.compile(r"(((language_model|model)\.)*layers\.0\.)self_attn\.q_proj\.weight")


def recognize(shapes: Shapes) -> list[Found]:
    """The networks whose tensors are among `shapes`, the main one first; of adapters, see adapters.py."""
    if shapes and shapes.keys() <= _EMBEDDINGS:
        return [Found("embedding")]
    candidates = (_network(shapes), _vae(shapes), _t5(shapes), *_clips(shapes), _language_model(shapes))
    return [found for found in candidates if found]


def _network(shapes: Shapes) -> Found | None:
    prefix = next(prefix for prefix in _NETWORK_PREFIXES if _has(shapes, prefix))
    inside = {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}
    for signature in _signatures():
        if signature.fits(inside):
            texts = (inside.get(f"{layer}.weight") for layer in _TEXT_LAYERS)
            return Found(signature.architecture, next((text[-1] for text in texts if text), None))
    return _unet(shapes, list(inside), prefix)


def _unet(shapes: Shapes, names: Sequence[str], prefix: str) -> Found | None:
    if not any(name.startswith(("input_blocks.0.", "down_blocks.0.")) for name in names):
        return None
    seen = next((shapes[prefix + name][-1:] for name in names if name.endswith("attn2.to_k.weight")), ())
    return Found(UNETS[seen[0]], seen[0]) if seen and seen[0] in UNETS else None


def _vae(shapes: Shapes) -> Found | None:
    for prefix in _VAE_PREFIXES:
        first = shapes.get(f"{prefix}decoder.conv_in.weight") or shapes.get(f"{prefix}decoder.conv1.weight")
        if first and len(first) in (4, 5):
            kinds = VAES_BY_CHANNELS if len(first) == 4 else VIDEO_VAES_BY_CHANNELS
            return Found(kinds.get(first[1], "vae-other"), first[1])
    return None


def _t5(shapes: Shapes) -> Found | None:
    for prefix in _T5_PREFIXES:
        query = shapes.get(f"{prefix}{_T5_MARK}")
        if query and len(query) == 2:
            rows = [shapes[prefix + name][0] for name in _T5_WORDS if shapes.get(prefix + name)]
            if _UMT5_VOCABULARY in rows:
                return Found("umt5", query[1])
            return Found("t5-xxl" if query[1] == 4096 else "t5", query[1])
    words = shapes.get(_WANS_WORDS, (0,))
    return Found("umt5", words[-1]) if words[0] == _UMT5_VOCABULARY else None


def _clips(shapes: Shapes) -> list[Found]:
    widths = [
        shape[-1]
        for name, shape in shapes.items()
        if name.endswith(_CLIP_MARKS) and "vision" not in name and "visual" not in name and shape
    ]
    return [Found(CLIPS_BY_WIDTH[width], width) for width in dict.fromkeys(widths) if width in CLIPS_BY_WIDTH]


def _language_model(shapes: Shapes) -> Found | None:
    """Kinds differ in the norms and biases of a block; Qwen3-VL without vision is like Qwen3."""
    mark = next((found for name in shapes if (found := _LANGUAGE_MARK.fullmatch(name))), None)
    if not mark:
        return None
    has_norms = f"{mark[1]}self_attn.q_norm.weight" in shapes
    has_more_norms = f"{mark[1]}pre_feedforward_layernorm.weight" in shapes
    kind = "language-model"
    if has_norms and not has_more_norms:
        kind = "qwen3-vl" if any("visual." in name for name in shapes) else "qwen3"
    elif has_more_norms and not has_norms:
        kind = "gemma2"
    elif f"{mark[1]}self_attn.q_proj.bias" in shapes:
        kind = "qwen2.5"
    return Found(kind, shapes[mark[0]][-1])


def _has(shapes: Shapes, prefix: str) -> bool:
    return any(name.startswith(prefix) for name in shapes) or not prefix


def vae_by_scaling(scaling: object) -> str | None:
    """The VAE that diffusers' config.json states by its scaling_factor, which shapes do not show."""
    return VAES_BY_SCALING.get(scaling) if isinstance(scaling, float) else None
