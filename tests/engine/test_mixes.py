"""Settings that are tested one by one work together: any mix trains, draws, and resumes bit for bit."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flowloom.engine.__main__ import run_engine
from flowloom.run.directory import RunDir
from tests.engine.test_resume import STEPS, assert_same_run, stop_after

SEEDS = range(int(os.environ.get("FLOWLOOM_MIXES", "11")))
CHOICES: dict[str, dict[str, list[Any]]] = {
    "training": {
        "updates_per_large_batch": [1, 2, 3],
        "train_minibatch": [1, 2, 4],
        "cfg_scale_strength": [None, None, 3.0],
        "weight_decay": [0.0, 0.1],
        "save_every": [2, 3, 5],
        "lr": [1e-3],
    },
    "dataloader": {
        "batch_size": [2, 3, 4],
        "shuffle_tags": [True, False],
        "offset": [0, 1],
        "base_resolution": [[64], [48, 64]],
    },
    "batching": {"pack_aspect_ratios": [False, True], "batch_tokens": [None, None, 90]},
    "objective": {
        "noise_level": [{"kind": "flow"}, {"kind": "uniform"}, {"kind": "shifted"}, {"kind": "logit_normal"}],
        "pairing": ["optimal_transport", "random"],
        "loss": ["mse", "huber"],
        "mask_mode": ["per_sample", "per_sample", "flow_union"],
    },
    "optimizer": {"kind": ["adamw", "adamw8bit", "adamw_bf16", "adamw_lowbit"]},
    "lr_schedule": {"kind": ["constant", "cosine", "wsd"]},
    "ema": {"decay": [None, 0.9], "device": ["same", "cpu"]},
    "cache": {
        "latents": ["off", "memory", "disk"],
        "text": ["off", "memory", "disk"],
        "sampling": ["mean", "draw"],
    },
    "memory": {"checkpointed_blocks": ["auto", "all", 1], "checkpointed_parts": ["block", "ffn"]},
    "model": {"use_x0": [False, False, True], "t5_to_8bit": [False, True]},
    "parallel": {"dtype": ["auto", "bf16", "fp32"], "trained_dtype": ["auto", "bf16", "fp32"]},
    "validation": {"share": [0.0, 0.2], "every": [5]},
    "preview": {
        "sampler": ["euler", "heun", "midpoint", "dpmpp_2m"],
        "weights": ["ema", "raw"],
        "format": ["png"],
    },
}
METHODS: list[dict[str, dict[str, Any]]] = [
    {"method": {"kind": "full"}},
    {
        "training": {"change_layer_every": 3, "trained_single_blocks": 1, "trained_double_blocks": 1},
        "method": {"kind": "rotation", "rotation_states": "keep"},
    },
    {
        "training": {"change_layer_every": 4, "trained_single_blocks": 2},
        "method": {"kind": "rotation", "rotation_states": "reset"},
    },
    {"training": {"trained_layer_keywords": ["single_blocks.1"]}, "method": {"kind": "keywords"}},
    {"lora": {"rank": 2, "alpha": 4}, "method": {"kind": "lora"}},
    {"lora": {"rank": 2, "alpha": 1, "base_model_quant_level": "8bit"}, "method": {"kind": "lora"}},
    {"lora": {"rank": 2, "alpha": 1, "base_model_quant_level": "4bit"}, "method": {"kind": "lora"}},
    {"lora": {"rank": 2, "alpha": 2}, "method": {"kind": "dora"}},
    {"lora": {"rank": 2, "alpha": 2}, "method": {"kind": "lokr", "lokr_factor": 4}},
]
PREVIEW = {"inference_every": 6, "steps": 2, "prompts": ["red, bar"], "image_dim": [64, 64], "cfg": 2.0}


def mix(seed: int, cache: Path) -> dict[str, dict[str, Any]]:
    """One of each."""
    draw = random.Random(seed)
    sections: dict[str, dict[str, Any]] = {
        name: {key: draw.choice(values) for key, values in keys.items()} for name, keys in CHOICES.items()
    }
    for name, keys in METHODS[seed % len(METHODS)].items():
        sections[name] = sections.get(name, {}) | keys
    sections["cache"]["dir"] = str(cache)
    if sections["objective"]["mask_mode"] == "flow_union":
        sections["cache"]["text"] = "off"
    return sections | {"inference": PREVIEW, "limits": {"max_steps": STEPS}}


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_any_mix_resumes_bit_for_bit(make_run: Callable[..., RunDir], seed: int, tmp_path: Path) -> None:
    whole = make_run("whole", **mix(seed, tmp_path / "one"))
    run_engine(whole)
    pieces = make_run("pieces", **mix(seed, tmp_path / "other"))
    for stop_at in (1, 4, 9):
        stop_after(pieces, stop_at)
    run_engine(pieces)
    assert_same_run(whole, pieces)
