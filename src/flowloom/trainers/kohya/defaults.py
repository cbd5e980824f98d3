"""sd-scripts' own defaults: the values of keys that an imported file leaves out.

They differ from this studio's: without a stated value sd-scripts trains the text encoder, for example, and
uses no buckets.
"""

from __future__ import annotations

from typing import Any

from flowloom.trainers.kohya.families import FACTS

Values = dict[str, Any]
DATASET: Values = {
    "batch_size": 1,
    "enable_bucket": False,
    "min_bucket_reso": 256,
    "max_bucket_reso": 1024,
    "bucket_reso_steps": 64,
    "bucket_no_upscale": False,
    "validation_split": 0.0,
}
"""Defaults of a dataset; sd-scripts has none for `resolution`."""
SUBSET: Values = {
    "num_repeats": 1,
    "class_tokens": None,
    "metadata_file": None,
    "is_reg": False,
    "caption_extension": ".caption",
    "shuffle_caption": False,
    "keep_tokens": 0,
    "keep_tokens_separator": None,
    "caption_prefix": None,
    "caption_suffix": None,
    "enable_wildcard": False,
    "flip_aug": False,
    "caption_dropout_rate": 0.0,
    "caption_tag_dropout_rate": 0.0,
    "alpha_mask": False,
    "conditioning_data_dir": None,
}
HUB: Values = {
    "huggingface_repo_id": None,
    "huggingface_repo_type": "model",
    "huggingface_path_in_repo": "",
    "huggingface_repo_visibility": "private",
    "async_upload": False,
    "save_state_to_huggingface": False,
}
"""Only with a repository; without a visibility, sd-scripts creates a private one."""
_SECTIONS: dict[str, Values] = {
    "network": {
        "network_module": None,
        "network_dim": 4,  # of every module where null
        "network_alpha": 1.0,
        "network_dropout": None,
        "network_train_unet_only": False,
        "network_weights": None,
        "network_args": [],
    },
    "training": {
        "max_train_steps": 1600,
        "max_train_epochs": None,
        "learning_rate": 2e-6,
        "unet_lr": None,
        "text_encoder_lr": None,
        "optimizer_type": "AdamW",
        "optimizer_args": [],
        "lr_scheduler": "constant",
        "lr_warmup_steps": 0,
        "max_grad_norm": 1.0,
        "gradient_accumulation_steps": 1,
        "gradient_checkpointing": False,
        "mixed_precision": "no",
        "full_bf16": False,
        "seed": None,
        "loss_type": "l2",
        "min_snr_gamma": None,
        "noise_offset": None,
        "clip_skip": None,
        "max_token_length": None,
        "no_half_vae": False,
        "max_data_loader_n_workers": 8,
        "attention": "none",
    },
    "memory": {
        "fp8_base": False,
        "blocks_to_swap": None,
        "cache_latents": False,
        "cache_latents_to_disk": False,
        "cache_text_encoder_outputs": False,
        "cache_text_encoder_outputs_to_disk": False,
        "vae_batch_size": 1,
    },
    "saving": {
        "output_name": "last",
        "save_every_n_steps": None,
        "save_last_n_steps": None,
        "save_last_n_steps_state": None,
        "save_every_n_epochs": None,
        "save_last_n_epochs": None,
        "save_precision": None,
        "save_state": False,
    },
    "sampling": {
        "prompts": [],
        "negative": "",
        "width": 512,
        "height": 512,
        "steps": 30,
        "scale": 7.5,
        "guidance": None,
        "seed": None,
        "sample_every_n_steps": None,
        "sample_every_n_epochs": None,
        "sample_at_first": False,
    },
}
_FLOW = {
    "timestep_sampling": "sigma",
    "sigmoid_scale": 1.0,
    "discrete_flow_shift": 3.0,
    "model_prediction_type": "sigma_scaled",
    "guidance_scale": 3.5,
    "apply_t5_attn_mask": False,
}
_OF_FAMILIES: dict[str, dict[str, Values]] = {
    "sd15": {
        "memory": {"cache_text_encoder_outputs": None, "cache_text_encoder_outputs_to_disk": None},
        "training": {"max_token_length": 75},
    },
    "sd3": {"flow": {"apply_t5_attn_mask": False}},
    "flux": {"flow": _FLOW, "sampling": {"steps": 20, "scale": 1.0, "guidance": 3.5}},
    # Its script does not start without the mask.
    "chroma": {
        "flow": {**_FLOW, "apply_t5_attn_mask": True},
        "sampling": {"steps": 20, "scale": 1.0, "guidance": 3.5},
    },
    "lumina": {
        "flow": {
            "timestep_sampling": "shift",
            "sigmoid_scale": 1.0,
            "discrete_flow_shift": 6.0,
            "model_prediction_type": "raw",
        },
        "sampling": {"width": 1024, "height": 1024, "steps": 38, "scale": 3.5},
    },
}
"""Other defaults of these scripts, without keys of SD 1.5 that the script may not know."""


def defaults_of(family: str) -> dict[str, Values]:
    """sd-scripts' defaults for a family, by section of the configuration."""
    special = _OF_FAMILIES.get(family, {}) if family in FACTS else {}
    names = dict.fromkeys([*_SECTIONS, *special])
    return {name: {**_SECTIONS.get(name, {}), **special.get(name, {})} for name in names}
