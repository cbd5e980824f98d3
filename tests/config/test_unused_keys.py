"""Keys that are set and change nothing are named with the reason; no other key is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flowloom.config.flow_format.read import load_config
from flowloom.config.keys import config_keys
from flowloom.config.run import RunConfig
from flowloom.config.unused_keys import IDLE, idle_keys

LORA = {"rank": 4}
ROTATION = {"change_layer_every": 5, "trained_single_blocks": 2}
SECTION = {"jsonl_metadata_path": "a.jsonl"}


def idle(**sections: Any) -> list[str]:
    return list(idle_keys(RunConfig.model_validate(sections)))


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        (
            {"lora": LORA, "training": ROTATION, "method": {"rotation_states": "reset"}},
            "training.change_layer_every, training.trained_single_blocks, method.rotation_states: "
            "no effect with method lora.",
        ),
        (
            {"lora": LORA, "training": {"trained_layer_keywords": ["img_in"]}},
            "training.trained_layer_keywords: no effect with method lora.",
        ),
        ({"method": {"kind": "dora", "lokr_factor": 4}}, "method.lokr_factor: no effect with method dora."),
        ({"lora": LORA, "method": {"kind": "full"}}, "lora: no effect with method full."),
        (
            {"model": {"family": "z-image", "vae_path": "v", "clip_path": "c", "t5_to_8bit": True}},
            "model.clip_path, model.t5_to_8bit: no effect with Z-Image.",
        ),
        ({"video": {"num_frames": [5]}}, "video.num_frames: no effect with a model of images."),
        (
            {"inference": {"num_frames": 5}},
            "inference.num_frames, inference.fps: no effect with a model of images.",
        ),
        (
            {"training": {"trained_double_blocks": 2}},
            "training.trained_double_blocks: no effect with method full.",
        ),
        (
            {"training": {"trained_layer_keywords": ["img_in"], "change_layer_every": 4}},
            "training.change_layer_every: no effect with method keywords.",
        ),
        ({"ema": {"device": "cpu"}}, "ema.device: no effect without ema.decay."),
        (
            {"cache": {"latents": "disk", "text": "disk", "limit_mib": 5}},
            "cache.limit_mib: no effect unless cache.latents or cache.text is memory.",
        ),
        (
            {"cache": {"text": "memory", "limit_gib": 5, "dtype": "bf16"}},
            "cache.limit_gib, cache.dtype: no effect unless cache.latents or cache.text is disk.",
        ),
        (
            {"cache": {"latents": "disk", "mirror_gib": 5}},
            "cache.mirror_gib: no effect unless cache.dir is in an object store.",
        ),
        (
            {"cache": {"latents": "disk", "caption_variants": 2}},
            "cache.caption_variants: no effect unless cache.text is disk.",
        ),
        ({"validation": {"every": 5}}, "validation.every: no effect while validation.share is 0."),
        ({"preview": {"sampler": "heun"}}, "preview.sampler: no effect without an inference section."),
        (
            {"inference": {"first_n_steps_wo_cfg": 2}},
            "inference.first_n_steps_wo_cfg: no effect while inference.cfg is 1.",
        ),
        (
            {"lr_schedule": {"kind": "cosine", "decay_share": 0.5}, "limits": {"max_steps": 5}},
            "lr_schedule.decay_share: no effect unless lr_schedule.kind is wsd.",
        ),
        ({"lr_schedule": {"min_ratio": 0.5}}, "lr_schedule.min_ratio: no effect with a constant rate."),
        (
            {"objective": {"huber_delta": 0.5}},
            "objective.huber_delta: no effect unless objective.loss is huber.",
        ),
        (
            {"batching": {"batch_tokens": 5000}, "dataloader": {"batch_size": 4}},
            "dataloader.batch_size: no effect with batching.batch_tokens.",
        ),
        (
            {"dataloader": {"shuffle_tags": False, "tag_drop_percentage": 0.5}},
            "dataloader.tag_drop_percentage: no effect while dataloader.shuffle_tags is off.",
        ),
        (
            {"dataloader": {"unmasked_weight": 0.5}},
            "dataloader.unmasked_weight: no effect while dataloader.mask is none.",
        ),
        (
            {"dataloader": {"mask": "alpha"}, "datasets": [SECTION]},
            "dataloader.mask: no effect, because no image of this dataset is read.",
        ),
        (
            {"datasets": [SECTION | {"mask": "alpha", "mask_folder_path": "m"}]},
            "datasets.0.mask_folder_path: no effect unless datasets.0.mask is folder.",
        ),
        (
            {"datasets": [SECTION | {"weight": 2}]},
            "datasets.0.weight: no effect, because no other dataset has a weight.",
        ),
        (
            {"datasets": [SECTION | {"repeats": 2, "is_regularisation": True}]},
            "datasets.0.is_regularisation: no effect with repeats or a weight.",
        ),
    ],
    ids=lambda given: given.split(":")[0] if isinstance(given, str) else "",
)
def test_a_key_without_effect_is_named_with_the_reason(sections: dict[str, Any], expected: str) -> None:
    assert idle(**sections) == [expected]


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"training": ROTATION, "method": {"always_trained": []}},
        {
            "lora": LORA,
            "ema": {"decay": 0.9, "device": "cpu"},
            "cache": {"latents": "memory", "limit_mib": 5},
        },
        {
            "cache": {
                "text": "disk",
                "dir": "s3://a/b",
                "mirror_gib": 5,
                "caption_variants": 2,
                "dtype": "bf16",
            }
        },
        {"method": {"kind": "lokr", "lokr_factor": 4}, "objective": {"loss": "huber", "huber_delta": 2}},
        {"inference": {"cfg": 4, "first_n_steps_wo_cfg": 2}, "preview": {"sampler": "heun"}},
        {
            "datasets": [
                SECTION | {"weight": 2},
                SECTION | {"weight": 1, "mask": "alpha", "unmasked_weight": 0.1},
            ]
        },
        {"dataloader": SECTION | {"mask": "folder", "mask_folder_path": "m", "unmasked_weight": 0.1}},
    ],
)
def test_a_key_with_an_effect_is_not_named(sections: dict[str, Any]) -> None:
    assert idle(**sections) == []


def test_a_key_without_effect_is_a_note_of_the_configuration() -> None:
    """Notes are what `train` and `--dry-run` print."""
    data = {"lora": LORA, "training": ROTATION, "ema": {"device": "cpu"}}
    assert load_config(data, [], Path("config.json")).notes == [
        "training.change_layer_every, training.trained_single_blocks: no effect with method lora.",
        "ema.device: no effect without ema.decay.",
    ]


def test_every_key_of_the_table_is_one_of_the_configuration() -> None:
    assert not [key for entry in IDLE for key in entry.keys.split() if key not in config_keys()]
