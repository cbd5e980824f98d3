"""What people bring from sd-scripts and kohya_ss arrives whole, or is named as left over."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from flowloom.errors import ConfigError
from flowloom.trainers.kohya.config import KohyaConfig
from flowloom.trainers.kohya.files import arguments_of
from flowloom.trainers.kohya.imports import from_bmaltais, from_toml
from flowloom.trainers.kohya.trainer import TRAINER

CONFIG = """
[model]
model_type = "chroma"
pretrained_model_name_or_path = "/m/chroma.safetensors"
t5xxl = "/m/t5.safetensors"
ae = "/m/ae.safetensors"
[net]
network_module = "networks.lora_flux"
network_dim = 8
network_args = ["train_blocks=single"]
[more]
learning_rate = 2e-4
guidance_scale = 0.0
sdpa = true
dataset_config = "/run/dataset.toml"
ip_noise_gamma = 0.1
"""
DATASET = """
[general]
shuffle_caption = true
caption_extension = ".txt"
[[datasets]]
resolution = [768, 768]
batch_size = 2
  [[datasets.subsets]]
  image_dir = "/data/a"
  num_repeats = 3
  token_warmup_step = 5
"""


def test_a_toml_and_its_data_arrive_and_go_back(tmp_path: Path) -> None:
    found = from_toml(CONFIG, DATASET)
    config = KohyaConfig.model_validate(found.config)
    assert config.family == "chroma"
    assert found.left_over == {"ip_noise_gamma": 0.1, "datasets.0.subsets.0.token_warmup_step": 5}
    (dataset,) = config.datasets
    assert (dataset.resolution, dataset.batch_size) == (768, 2)
    assert (dataset.subsets[0].num_repeats, dataset.subsets[0].shuffle_caption) == (3, True)
    again = arguments_of(config, tmp_path)
    given = {key: value for part in tomllib.loads(CONFIG).values() for key, value in part.items()}
    ours = {"dataset_config", "ip_noise_gamma"}
    assert {key: again[key] for key in given.keys() - ours} == {
        k: v for k, v in given.items() if k not in ours
    }


def test_what_kohya_ss_saves_arrives() -> None:
    form = {
        "LoRA_type": "Standard",
        "pretrained_model_name_or_path": "/m/sdxl.safetensors",
        "sdxl": True,
        "train_data_dir": "/data/a",
        "max_resolution": "1024,1024",
        "train_batch_size": 2,
        "learning_rate": "0.0002",
        "network_dim": 32,
        "network_alpha": 16,
        "optimizer": "AdamW",
        "optimizer_args": "weight_decay=0.1 eps=1e-8",
        "epoch": 3,
        "seed": "7",
        "caption_extension": ".txt",
        "noise_offset": 0,
        "wandb_api_key": "",
        "multires_noise_iterations": 6,
    }
    found = from_bmaltais(json.dumps(form))
    config = KohyaConfig.model_validate(found.config)
    assert config.family == "sdxl"
    assert (config.training.learning_rate, config.training.seed) == (2e-4, 7)
    assert config.training.optimizer_args == ["weight_decay=0.1", "eps=1e-8"]
    assert (config.training.max_train_epochs, config.network.network_dim) == (3, 32)
    assert (config.datasets[0].resolution, config.datasets[0].batch_size) == (1024, 2)
    assert config.datasets[0].subsets[0].image_dir == "/data/a"
    assert found.left_over == {"sdxl": True, "multires_noise_iterations": 6}


@pytest.mark.parametrize("text", ["a = ", "\x00"])
def test_what_is_no_toml_is_told(text: str) -> None:
    with pytest.raises(ConfigError, match="not TOML"):
        from_toml(text)


@pytest.mark.parametrize("text", ["{", "[]"])
def test_what_is_no_json_is_told(text: str) -> None:
    with pytest.raises(ConfigError, match=r"JSON|object"):
        from_bmaltais(text)


@pytest.mark.parametrize(
    ("config", "dataset"),
    [
        ("learning_rate = [1]", "general = 3"),
        ("resolution = []", "datasets = 3"),
        ("x = 1", "[[datasets]]\nsubsets = [1, 'a']\nresolution = 'wide'"),
    ],
)
def test_nonsense_is_left_to_the_check(config: str, dataset: str) -> None:
    found = from_toml(config, dataset)
    assert TRAINER.check(found.config)


def test_nonsense_in_a_form_is_left_to_the_check() -> None:
    found = from_bmaltais('{"max_resolution": "wide", "train_data_dir": {}, "epoch": "many", "seed": [1]}')
    assert TRAINER.check(found.config)
