"""Keys that mean something for one family or method of sd-scripts only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flowloom.trainers.kohya.files import arguments_of
from flowloom.trainers.kohya.imports import from_bmaltais
from tests.trainers.test_kohya_imports import of_form, of_toml


def test_text_encoders_of_a_whole_network_are_trained_as_stated() -> None:
    config, _ = of_toml(
        'pretrained_model_name_or_path = "/m/sd_xl_base.safetensors"\nlearning_rate_te1 = 3e-6\n'
        "learning_rate_te2 = 0\ntrain_text_encoder = true\nvalidation_seed = 0\nmin_timestep = 0"
    )
    assert (config.family, config.method) == ("sdxl", "full")
    arguments = "--learning_rate_te1 3e-06 --learning_rate_te2 0 --train_text_encoder --validation_seed 0"
    assert config.raw_arguments == arguments, "0 is a rate: without one they would get the network's"
    form = {"sdxl": True, "pretrained_model_name_or_path": "/m/x.safetensors", "learning_rate_te": 1e-5}
    for te2, expected in (
        (1e-6, "--learning_rate_te2 1e-06 --train_text_encoder"),
        (0, "--learning_rate_te2 0"),
    ):
        found = from_bmaltais(json.dumps(form | {"learning_rate_te2": te2}))
        assert found.config["raw_arguments"] == expected
        assert found.unused["learning_rate_te"] == "belongs to another model family"


@pytest.mark.parametrize(
    ("form", "family", "arguments", "unused"),
    [
        (
            {
                "sd3_checkbox": True,
                "sd3_clip_l": "/m/l",
                "clip_l": "/m/other",
                "t5xxl_lr": 1e-5,
                "text_encoder_lr": 5e-5,
            },
            "sd3",
            {"clip_l": "/m/l", "text_encoder_lr": [5e-5, 1e-5]},
            "clip_l",
        ),
        (
            {"lumina_checkbox": True, "LoRA_type": "Lumina", "lumina_gemma2": "/m/g", "clip_skip": 2},
            "lumina",
            {"gemma2": "/m/g", "network_module": "networks.lora_lumina", "discrete_flow_shift": 6.0},
            "clip_skip",
        ),
        (
            {"flux1_checkbox": True, "model_type": "chroma", "guidance_scale": 0, "network_alpha": 0},
            "chroma",
            {"guidance_scale": 0.0, "network_alpha": 32.0, "apply_t5_attn_mask": True},
            "sdxl_no_half_vae",
        ),
    ],
)
def test_keys_of_a_family_are_taken_for_that_family_only(
    form: dict[str, Any], family: str, arguments: dict[str, Any], unused: str, tmp_path: Path
) -> None:
    config, found = of_form(**form, sdxl=False, sdxl_no_half_vae=True)
    assert config.family == family
    assert arguments.items() <= arguments_of(config, tmp_path).items()
    assert found.unused[unused] == "belongs to another model family"
