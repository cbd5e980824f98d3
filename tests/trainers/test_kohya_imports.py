"""Configurations of sd-scripts and kohya_ss are imported with the same meaning, or reported."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from flowloom.errors import ConfigError
from flowloom.trainers.kohya.config import KohyaConfig
from flowloom.trainers.kohya.files import arguments_of, prompt_lines
from flowloom.trainers.kohya.imports import Files, Imported, from_bmaltais, from_toml

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
no_such_key = 3
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
  custom_attributes = { a = 1 }
"""
FORM = {
    "LoRA_type": "Standard",
    "pretrained_model_name_or_path": "/m/sdxl.safetensors",
    "sdxl": True,
    "train_data_dir": "/data/10_fox",
    "max_resolution": "1024,1024",
    "train_batch_size": 2,
    "learning_rate": "0.0002",
    "network_dim": 32,
    "network_alpha": 16,
    "optimizer": "AdamW",
    "epoch": 3,
    "caption_extension": ".txt",
}


def of_form(**more: Any) -> tuple[KohyaConfig, Imported]:
    found = from_bmaltais(json.dumps(FORM | more))
    return KohyaConfig.model_validate(found.config), found


def of_toml(text: str, **files: Any) -> tuple[KohyaConfig, Imported]:
    found = from_toml(text, files.get("dataset_toml", ""), Files(**files))
    return KohyaConfig.model_validate(found.config), found


def test_a_toml_and_its_data_arrive_and_go_back(tmp_path: Path) -> None:
    config, found = of_toml(CONFIG, dataset_toml=DATASET)
    assert (config.family, config.method) == ("chroma", "lora")
    assert found.left_over == {"no_such_key": 3, "datasets.0.subsets.0.custom_attributes": {"a": 1}}
    (dataset,) = config.datasets
    assert (dataset.resolution, dataset.batch_size) == (768, 2)
    assert (dataset.subsets[0].num_repeats, dataset.subsets[0].shuffle_caption) == (3, True)
    assert config.raw_arguments == "--ip_noise_gamma 0.1 --token_warmup_step 5"
    again = arguments_of(config, tmp_path)
    given = {key: value for part in tomllib.loads(CONFIG).values() for key, value in part.items()}
    elsewhere = {"dataset_config", "ip_noise_gamma", "no_such_key"}
    assert {key: again[key] for key in given.keys() - elsewhere} == {
        key: value for key, value in given.items() if key not in elsewhere
    }


def test_saved_configurations_of_kohya_ss_arrive() -> None:
    config, found = of_form(
        seed="7", optimizer_args="weight_decay=0.1 eps=1e-8", multires_noise_iterations=6, no_such_key=1
    )
    assert (config.family, config.method) == ("sdxl", "lora")
    assert (config.training.learning_rate, config.training.seed) == (2e-4, 7)
    assert config.training.optimizer_args == ["weight_decay=0.1", "eps=1e-8"]
    assert (config.training.max_train_epochs, config.network.network_dim) == (3, 32)
    assert (config.datasets[0].resolution, config.datasets[0].batch_size) == (1024, 2)
    assert config.raw_arguments == "--multires_noise_iterations 6"
    assert found.left_over == {"no_such_key": 1}


def test_zeros_are_kept() -> None:
    config, _ = of_form(
        max_grad_norm=0,
        max_data_loader_n_workers=0,
        seed=0,
        save_every_n_steps=0,
        lr_warmup=0,
        keep_tokens="0",
    )
    training = config.training
    assert (training.max_grad_norm, training.max_data_loader_n_workers, training.seed) == (0, 0, 0)
    assert (training.lr_warmup_steps, config.saving.save_every_n_steps) == (0, None)


def test_a_text_encoder_with_rate_0_is_not_trained(tmp_path: Path) -> None:
    config, _ = of_form(text_encoder_lr=0, unet_lr=1e-4)
    arguments = arguments_of(config, tmp_path)
    assert (arguments["text_encoder_lr"], arguments["network_train_unet_only"]) == (0, True)
    both, _ = of_form(text_encoder_lr=0, unet_lr=0)
    assert (both.training.text_encoder_lr, both.network.network_train_unet_only) == (None, False)
    text_only, _ = of_form(text_encoder_lr=1e-5, unet_lr=0)
    assert text_only.raw_arguments == "--network_train_text_encoder_only"


def test_false_is_kept(tmp_path: Path) -> None:
    stated = ("cache_latents", "cache_latents_to_disk", "gradient_checkpointing", "save_state")
    config, found = of_form(enable_bucket=False, bucket_no_upscale="False", **dict.fromkeys(stated, False))
    assert (config.datasets[0].enable_bucket, config.datasets[0].bucket_no_upscale) == (False, False)
    arguments = arguments_of(config, tmp_path)
    assert [arguments[key] for key in stated] == [False] * 4
    assert {*stated, "enable_bucket", "bucket_no_upscale"} <= {*found.understood}


def test_missing_keys_have_the_defaults_of_sd_scripts(tmp_path: Path) -> None:
    config, found = of_toml(
        'pretrained_model_name_or_path = "/m/x.safetensors"\nnetwork_module = "networks.lora"'
    )
    training, network = config.training, config.network
    assert (training.learning_rate, training.optimizer_type, training.lr_scheduler) == (
        2e-6,
        "AdamW",
        "constant",
    )
    assert (training.max_train_steps, training.mixed_precision, training.attention) == (1600, "no", "none")
    assert (network.network_dim, network.network_alpha) == (4, 1)
    assert (config.saving.save_state, config.saving.save_precision) == (False, None)
    arguments = arguments_of(config, tmp_path)
    assert not {"sdpa", "xformers", "max_token_length", "seed", "save_precision"} & arguments.keys()
    assert found.defaults["training.learning_rate"] == 2e-6


def test_flux_without_its_keys_gets_sd_scripts_values_and_not_the_studios(tmp_path: Path) -> None:
    config, _ = of_toml(
        'ae = "/m/ae.safetensors"\nnetwork_dim = 4\nsample_every_n_steps = 10', prompts="a fox"
    )
    arguments = arguments_of(config, tmp_path)
    stated = ("timestep_sampling", "model_prediction_type", "guidance_scale", "network_train_unet_only")
    assert [arguments[key] for key in stated] == ["sigma", "sigma_scaled", 3.5, False]
    assert prompt_lines(config) == ["a fox --w 512 --h 512 --s 20 --l 1 --g 3.5"]


@pytest.mark.parametrize(
    ("stated", "kernel"),
    [
        ({"xformers": "sdpa"}, "sdpa"),
        ({"xformers": "xformers"}, "xformers"),
        ({"xformers": "none"}, "none"),
        ({"xformers": True}, "xformers"),
        ({"xformers": False}, "none"),
        ({"xformers": "False", "sdpa": "True"}, "sdpa"),
        ({"sdpa": True, "xformers": True}, "xformers"),
        ({}, "none"),
    ],
)
def test_attention_is_read_by_its_value(stated: dict[str, Any], kernel: str) -> None:
    assert of_form(**stated)[0].training.attention == kernel
    lines = "\n".join(f"{key} = {json.dumps(value)}" for key, value in stated.items())
    assert of_toml(lines)[0].training.attention == kernel


@pytest.mark.parametrize(
    ("stated", "resolution"),
    [("512,768", [512, 768]), ("512, 512", 512), ("640", 640), (640, 640), ([832, 1216], [832, 1216])],
)
def test_a_resolution_is_width_and_height(stated: Any, resolution: Any) -> None:
    assert of_form(max_resolution=stated)[0].datasets[0].resolution == resolution
    assert of_toml(f"resolution = {json.dumps(stated)}")[0].datasets[0].resolution == resolution


def test_folders_with_repeats_become_subsets() -> None:
    folders = {"/d": ["10_owl", "5_a cat", "notes", "0_x", "2023_spring"], "/r": ["1_bird"]}
    text = 'train_data_dir = "/d"\nreg_data_dir = "/r"\nkeep_tokens = 2\ntrain_batch_size = 3'
    config, found = of_toml(text, look=folders.get)
    (dataset,) = config.datasets
    rows = [(one.image_dir, one.num_repeats, one.class_tokens, one.is_reg) for one in dataset.subsets]
    assert rows == [
        ("/d/10_owl", 10, "owl", False),
        ("/d/2023_spring", 2023, "spring", False),
        ("/d/5_a cat", 5, "a cat", False),
        ("/r/1_bird", 1, "bird", True),
    ]
    assert {one.keep_tokens for one in dataset.subsets} == {2}
    assert dataset.batch_size == 3
    assert found.left_over == {}


def test_folders_that_sd_scripts_does_not_train_are_named() -> None:
    text = 'train_data_dir = "/d"'
    _, found = of_toml(text, look={"/d": ["10_owl", "CROP", "10 fox", "1.5_fox", "_fox"]}.get)
    expected = "1 subset: 10_owl (10 repeats); sd-scripts does not train, by their names: "
    assert found.translated["train_data_dir"] == f"{expected}1.5_fox, 10 fox, CROP, _fox"
    _, found = of_toml(text, look={"/d": ["10_owl"]}.get)
    assert found.translated["train_data_dir"] == "1 subset: 10_owl (10 repeats)"


@pytest.mark.parametrize(
    "stated",
    [
        "algo=loha conv_dim=16",
        '"algo=loha" "conv_dim=16"',
        ["algo=loha", "conv_dim=16"],
        ["algo=loha conv_dim=16"],
        {"algo": "loha", "conv_dim": 16},
    ],
)
def test_network_args_are_the_same_in_every_spelling(stated: Any) -> None:
    for network in (
        of_form(LoRA_type="", network_args=stated)[0].network,
        of_form(LoRA_type="", network_module="lycoris.kohya", network_args=stated)[0].network,
    ):
        assert (network.network_module, network.network_args) == (
            "lycoris.kohya",
            ["algo=loha", "conv_dim=16"],
        )
    if not isinstance(stated, dict):
        network = of_toml(f"network_args = {json.dumps(stated)}")[0].network
        assert (network.network_module, network.network_args) == (
            "lycoris.kohya",
            ["algo=loha", "conv_dim=16"],
        )


def test_a_path_with_a_space_stays_one_argument() -> None:
    arguments = ["preset=/my files/a.toml", "algo=lokr"]
    assert of_toml(f"network_args = {json.dumps(arguments)}")[0].network.network_args == arguments


def test_a_folder_that_cannot_be_read_is_reported() -> None:
    _, found = of_toml('train_data_dir = "/elsewhere"')
    assert found.left_over == {"train_data_dir": "/elsewhere"}
    assert "REPEATS_NAME" in found.reasons["train_data_dir"]


def test_of_two_keys_for_the_same_folder_one_is_reported() -> None:
    _, found = of_form(train_data_dir="/d/10_fox", image_folder="/d/other")
    assert found.left_over == {"image_folder": "/d/other"}
    assert "train_data_dir counts" in found.reasons["image_folder"]


def test_lokr_stays_lokr() -> None:
    config, found = of_form(
        LoRA_type="LyCORIS/LoKr", network_dim=10000, factor=8, conv_dim=8, conv_alpha=4, dora_wd=True,
        train_norm=False, LyCORIS_preset="full", unit=4,
    )  # fmt: skip
    network = config.network
    assert (network.network_module, network.network_dim) == ("lycoris.kohya", 10000)
    expected = {"factor=8", "conv_dim=8", "conv_alpha=4", "dora_wd=True", "train_norm=False", "preset=full"}
    assert set(network.network_args) == expected | {"algo=lokr"}
    assert found.unused["unit"] == "belongs to another LoRA type"


@pytest.mark.parametrize(
    ("kind", "module", "arguments"),
    [
        ("Kohya LoCon", "networks.lora", {"conv_dim=8", "conv_alpha=1"}),
        ("Kohya DyLoRA", "networks.dylora", {"conv_dim=8", "conv_alpha=1", "unit=4"}),
        ("LyCORIS/LoHa", "lycoris.kohya", {"conv_dim=8", "conv_alpha=1", "algo=loha"}),
        ("LyCORIS/DyLoRA", "lycoris.kohya", {"conv_dim=8", "conv_alpha=1", "block_size=4", "algo=dylora"}),
        ("Flux1", "networks.lora_flux", {"train_blocks=single"}),
        ("Standard", "networks.lora", {"block_dims=2,2,4"}),
    ],
)
def test_types_of_adapters_keep_their_arguments(kind: str, module: str, arguments: set[str]) -> None:
    keys = {"conv_dim": 8, "conv_alpha": 1, "unit": 4, "split_mode": True, "block_dims": "2, 2, 4"}
    network = of_form(LoRA_type=kind, **keys)[0].network
    assert network.network_module == module
    assert {*network.network_args} - {"block_dims=2,2,4"} == arguments - {"block_dims=2,2,4"}
    assert ("block_dims=2,2,4" in network.network_args) == (module.startswith("networks") and kind != "Flux1")


def test_prompts_keep_their_options() -> None:
    text = (
        "a brass pot --n blurry, dark --w 512 --h 768 --d 7 --l 1 --s 20\n# a remark\na kettle --d 8 --zz 1"
    )
    config, found = of_form(sample_prompts=text, sample_every_n_steps=50)
    first, second = prompt_lines(config)
    assert first == "a brass pot --w 512 --h 768 --s 20 --l 1 --n blurry, dark --d 7"
    assert second == "a kettle --w 512 --h 512 --s 30 --l 7.5 --d 8"
    assert found.left_over == {"sample_prompts.1.--zz": "1"}
    assert config.sampling.sample_every_n_steps == 50


@pytest.mark.parametrize(
    "prompts",
    [
        "a fox --w 640 --n bad --d 3",
        '[prompt]\nwidth = 640\nnegative_prompt = "bad"\n[[prompt.subset]]\nprompt = "a fox"\nseed = 3',
        '[{"prompt": "a fox", "width": 640, "negative_prompt": "bad", "seed": 3}]',
        '["a fox --w 640 --n bad --d 3"]',
    ],
)
def test_prompt_files_of_each_kind_are_read(prompts: str) -> None:
    config, _ = of_toml('sample_prompts = "p"', prompts="ignored")
    config, found = of_toml('sample_prompts = "/m/prompts.txt"', prompts=prompts)
    assert prompt_lines(config) == ["a fox --w 640 --h 512 --s 30 --l 7.5 --n bad --d 3"]
    assert found.left_over == {}


def test_a_prompt_file_that_is_not_brought_is_reported() -> None:
    assert of_toml('sample_prompts = "C:\\\\p.txt"')[1].left_over == {"sample_prompts": "C:\\p.txt"}


def test_nested_tomls_of_other_front_ends_lose_nothing() -> None:
    text = """
    [[subsets]]
    image_dir = "/data/d/10_teapot"
    num_repeats = 3
    caption_extension = ".txt"
    name = "teapot"
    [general_args.args]
    sdxl = true
    mixed_precision = "bf16"
    [general_args.dataset_args]
    resolution = [768, 512]
    batch_size = 4
    [network_args.args]
    network_dim = 16
    [network_args.args.network_args]
    algo = "loha"
    conv_dim = 8
    [optimizer_args.args]
    warmup_ratio = 0.1
    [optimizer_args.args.optimizer_args]
    weight_decay = 0.1
    betas = "0.9,0.99"
    [saving_args.args]
    tag_occurrence = true
    """
    config, found = of_toml(text)
    assert (config.family, config.training.mixed_precision) == ("sdxl", "bf16")
    assert (config.datasets[0].resolution, config.datasets[0].batch_size) == ([768, 512], 4)
    assert config.datasets[0].subsets[0].num_repeats == 3
    assert (config.network.network_module, config.network.network_dim) == ("lycoris.kohya", 16)
    assert config.network.network_args == ["algo=loha", "conv_dim=8"]
    assert config.training.optimizer_args == ["weight_decay=0.1", "betas=0.9,0.99"]
    assert config.training.lr_warmup_steps == 0.1
    assert found.left_over == {"datasets.0.subsets.0.name": "teapot", "tag_occurrence": True}


def test_additional_parameters_count_and_secrets_in_them_do_not() -> None:
    arguments = "--wandb_api_key=abc123secret --network_train_unet_only --huber_c 0.2 stray"
    config, found = of_form(additional_parameters=arguments, huggingface_token="hf_secret")
    assert config.network.network_train_unet_only is True
    assert config.raw_arguments == "--huber_c 0.2"
    assert found.left_over == {"additional_parameters stray": "stray"}
    assert "secret" not in json.dumps(found.config) + json.dumps(found.left_over)
    assert set(found.dropped) == {"huggingface_token", "additional_parameters --wandb_api_key"}


def test_datasets_inherit_from_the_arguments_as_in_sd_scripts() -> None:
    dataset = '[[datasets]]\nresolution = 768\n[[datasets.subsets]]\nimage_dir = "/a"\nkeep_tokens = 1'
    text = 'train_batch_size = 3\nresolution = "512"\nkeep_tokens = 2\nenable_bucket = true'
    (found,) = of_toml(text, dataset_toml=dataset)[0].datasets
    assert (found.resolution, found.batch_size, found.enable_bucket) == (768, 3, True)
    assert (found.subsets[0].keep_tokens, found.subsets[0].caption_extension) == (1, ".caption")


def test_keys_that_subsets_state_differently_are_reported() -> None:
    dataset = """
    [[datasets]]
    [[datasets.subsets]]
    image_dir = "/a"
    color_aug = true
    [[datasets.subsets]]
    image_dir = "/b"
    """
    config, found = of_toml("", dataset_toml=dataset)
    assert found.left_over == {"datasets.0.subsets.0.color_aug": True}
    assert config.raw_arguments == ""


def test_windows_paths_in_tomls_are_kept_or_explained() -> None:
    text = "[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'D:\\sets\\10_pot'\ncaption_extension = \"txt\""
    (subset,) = of_toml("", dataset_toml=text)[0].datasets[0].subsets
    assert (subset.image_dir, subset.caption_extension) == ("D:\\sets\\10_pot", ".txt")
    with pytest.raises(ConfigError, match="single quotes"):
        from_toml("", '[[datasets]]\n[[datasets.subsets]]\nimage_dir = "D:\\sets\\pot"')
    assert of_form(train_data_dir="D:\\sets\\10_pot")[0].datasets[0].subsets[0].num_repeats == 10
