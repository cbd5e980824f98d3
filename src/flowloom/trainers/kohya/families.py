"""Differences between model families: scripts, modules, files and suitable values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Facts:
    """Scripts and defaults of a family."""

    title: str
    lora_script: str
    full_script: str | None
    """Script for full fine-tunes, with caption files."""
    network_module: str
    needed: tuple[str, ...]
    """Keys of `model` that must be given."""
    values: dict[str, Any] = field(default_factory=dict)
    """Values of sd-scripts' keys that are right for the family by default."""
    flows: bool = True
    """True if its scripts accept the keys of `flow`."""
    side: int = 64
    """Minimum step between image sides."""
    metadata_script: str | None = None
    """Script for full fine-tunes with captions in a file; None: full_script."""


FACTS = {
    "sd15": Facts(
        "SD 1.5", "train_network.py", "train_db.py", "networks.lora",
        ("pretrained_model_name_or_path",), {"max_token_length": 225}, flows=False,
        metadata_script="fine_tune.py",
    ),
    "sdxl": Facts(
        "SDXL", "sdxl_train_network.py", "sdxl_train.py", "networks.lora",
        ("pretrained_model_name_or_path",), {"no_half_vae": True}, flows=False,
    ),
    "sd3": Facts(
        "SD 3", "sd3_train_network.py", "sd3_train.py", "networks.lora_sd3",
        ("pretrained_model_name_or_path",), {"network_train_unet_only": True}, flows=False,
    ),
    "flux": Facts(
        "FLUX", "flux_train_network.py", "flux_train.py", "networks.lora_flux",
        ("pretrained_model_name_or_path", "ae", "clip_l", "t5xxl"),
        {
            "guidance_scale": 1.0, "timestep_sampling": "flux_shift", "model_prediction_type": "raw",
            "network_train_unet_only": True,
        },
        side=32,
    ),
    "lumina": Facts(
        "Lumina", "lumina_train_network.py", "lumina_train.py", "networks.lora_lumina",
        ("pretrained_model_name_or_path", "ae", "gemma2"),
        {
            "timestep_sampling": "nextdit_shift", "model_prediction_type": "raw",
            "network_train_unet_only": True,
        },
    ),
    # Its script asserts only the mask; its defaults for guidance and prediction are FLUX's, and wrong here.
    "chroma": Facts(
        "Chroma", "flux_train_network.py", None, "networks.lora_flux",
        ("pretrained_model_name_or_path", "ae", "t5xxl"),
        {
            "model_type": "chroma", "apply_t5_attn_mask": True, "guidance_scale": 0.0,
            "model_prediction_type": "raw", "timestep_sampling": "sigmoid", "network_train_unet_only": True,
        },
        side=32,
    ),
}  # fmt: skip
SAMPLING = {"chroma": {"g": 0.0, "l": 4.0}, "flux": {"g": 3.5, "l": 1.0}}
"""Defaults of prompts, --g and --l; sd-scripts' own are wrong for Chroma."""
