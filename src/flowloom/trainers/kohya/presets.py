"""Configurations to begin with, and where their values come from."""

from __future__ import annotations

from flowloom.trainers.base import Preset, Source

_FLUX_PAGE = "sd-scripts' docs/flux_train_network.md"
_SDXL_PAGE = "sd-scripts' docs/sdxl_train_network.md"
_RANK = Source("documentation", f"Rank, rate, optimizer, captions encoded once: the example of {_FLUX_PAGE}.")
_OURS = Source("judgement", "Alpha, warm-up, bfloat16: ours.")
PRESETS = [
    Preset(
        name="chroma-lora-16gb",
        title="Chroma LoRA, 16 GB",
        note="The base in 8 bits, captions encoded once; mask, guidance and prediction as Chroma needs them.",
        config={
            "family": "chroma",
            "memory": {"fp8_base": True, "cache_text_encoder_outputs": True},
            "network": {"network_dim": 16},
        },
        sources=(
            Source(
                "documentation",
                f"Mask, guidance 0, raw prediction, sigmoid: what {_FLUX_PAGE} says of Chroma.",
            ),
            _RANK,
            _OURS,
            Source(
                "calculation",
                "The card: 8.9 GB of weights in 8 bits, 0.6 GB of the adapter and its optimizer, no encoder, "
                "and activations on top. Not measured.",
            ),
        ),
    ),
    Preset(
        name="sdxl-lora",
        title="SDXL LoRA",
        note="With both text encoders frozen.",
        config={"family": "sdxl", "network": {"network_dim": 32, "network_train_unet_only": True}},
        sources=(
            Source("documentation", f"Rank, alpha, rate, optimizer, bfloat16: the example of {_SDXL_PAGE}."),
            Source(
                "judgement",
                "Frozen text encoders: ours; that example encodes captions once, for which they must be.",
            ),
        ),
    ),
    Preset(
        name="flux-lora-24gb",
        title="FLUX LoRA, 24 GB",
        note="The base in 8 bits, captions encoded once.",
        config={"family": "flux", "memory": {"fp8_base": True, "cache_text_encoder_outputs": True}},
        sources=(
            Source("documentation", f"Guidance 1, raw prediction, flux_shift, and the card: {_FLUX_PAGE}."),
            _RANK,
            _OURS,
        ),
    ),
]
