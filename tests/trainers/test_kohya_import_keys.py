"""No key of an imported file disappears: each one is in exactly one part of the report, with its effect."""

from __future__ import annotations

import json
import shlex
import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowloom.errors import ConfigError
from flowloom.trainers.kohya.arguments import raw_problems
from flowloom.trainers.kohya.config import Dataset, ImageFolder, KohyaConfig
from flowloom.trainers.kohya.defaults import DATASET, SUBSET, defaults_of
from flowloom.trainers.kohya.families import FACTS
from flowloom.trainers.kohya.files import toml
from flowloom.trainers.kohya.imports import Imported, from_bmaltais, from_toml
from flowloom.trainers.kohya.imports.networks import KEYS
from flowloom.trainers.kohya.imports.values import is_empty, is_same
from flowloom.trainers.kohya.known_keys import PATHS, RAW
from flowloom.trainers.kohya.trainer import TRAINER

SECTIONS = {name: type(section) for name, section in KohyaConfig() if hasattr(type(section), "model_fields")}
FIELDS = {key for section in SECTIONS.values() for key in section.model_fields}
ARGUMENTS = sorted(
    FIELDS - {"prompts", "negative", "attention"}
    | (Dataset.model_fields.keys() - {"subsets"})
    | ImageFolder.model_fields.keys()
    | RAW
    | PATHS
    | {"sdpa", "xformers", "train_data_dir", "reg_data_dir", "output_dir", "logging_dir", "resume"}
    | {"sample_prompts", "save_model_as", "dataset_config", "train_batch_size", "use_8bit_adam", "log_with"}
    | {"wandb_api_key", "huggingface_token", "console_log_simple", "config_file", "in_json", "model_type"}
    | {"no_such_key"}
)
"""All that sd-scripts takes, and a key that it does not know."""
FORM = sorted(
    {*ARGUMENTS, *KEYS, "LoRA_type", "epoch", "lr_warmup", "max_resolution", "optimizer", "headless"}
    | {"sdxl", "flux1_checkbox", "sd3_checkbox", "lumina_checkbox", "sdxl_no_half_vae", "noise_offset_type"}
    | {"sd3_clip_l", "flux1_cache_text_encoder_outputs", "lumina_gemma2", "anima_vae", "t5xxl_lr"}
    | {"num_processes", "gpu_ids", "extra_accelerate_launch_args", "stop_text_encoder_training", "use_wandb"}
    | {"train_dir", "image_folder", "caption_metadata_filename", "latent_metadata_filename", "model_list"}
    | {"additional_parameters"}
)
TEXTS = st.sampled_from(
    ["", "None", "a b", "D:\\x\\10_y", "/data/x", "0", "1", "true", "False", "2e-4", "flux"]
)
PLAIN = st.one_of(st.booleans(), st.integers(0, 9), st.sampled_from([0.0, 0.5, 1e-4, 2.0]), TEXTS)
VALUES = st.one_of(PLAIN, st.lists(TEXTS, max_size=3), st.lists(st.integers(0, 9), max_size=2))


def reported(found: Imported) -> list[str]:
    """The keys in all parts of the report, one after another."""
    parts = (
        *(found.understood, found.translated, found.raw),
        *(found.unused, found.left_over, found.dropped),
    )
    return [name for part in parts for name in part]


def require_all_reported(found: Imported, stated: dict[str, Any]) -> None:
    whole = [
        name for name in reported(found) if not name.startswith(("additional_parameters ", "sample_prompts."))
    ]
    assert sorted(whole) == sorted(stated)
    assert len(set(reported(found))) == len(reported(found))


def require_same_effect(found: Imported, stated: dict[str, Any]) -> None:
    """Keys that are understood have their value in the configuration, raw arguments their words."""
    arguments = shlex.split(found.config.get("raw_arguments", ""))
    assert all(shlex.split(text)[0] in arguments for text in found.raw.values())
    for name in found.understood:
        place = next((place for place, section in SECTIONS.items() if name in section.model_fields), None)
        if place not in (None, "sampling") and name in found.config.get(place, {}):
            given, taken = [stated[name]], [found.config[place][name]]
            if name == "text_encoder_lr" and "second value" in found.translated.get("t5xxl_lr", ""):
                given, taken = [*given, stated["t5xxl_lr"]], taken[0]
            assert all(is_same(*pair) for pair in zip(given, taken, strict=True)), name


@given(st.dictionaries(st.sampled_from(ARGUMENTS), VALUES, max_size=25))
def test_no_argument_of_sd_scripts_disappears(stated: dict[str, Any]) -> None:
    text = "\n".join(f"{key} = {toml(value)}" for key, value in stated.items())
    assert tomllib.loads(text) == stated
    found = from_toml(text)
    require_all_reported(found, stated)
    require_same_effect(found, stated)
    assert isinstance(TRAINER.check(found.config), list)


@given(
    st.dictionaries(
        st.sampled_from(FORM),
        st.one_of(VALUES, st.none(), st.dictionaries(TEXTS, PLAIN, max_size=1)),
        max_size=40,
    )
)
def test_no_key_of_kohya_ss_disappears(stated: dict[str, Any]) -> None:
    found = from_bmaltais(json.dumps(stated))
    require_all_reported(found, stated)
    require_same_effect(found, stated)
    assert isinstance(TRAINER.check(found.config), list)


@given(st.dictionaries(st.sampled_from(sorted(RAW)), PLAIN, max_size=8))
def test_raw_arguments_of_an_import_are_accepted(stated: dict[str, Any]) -> None:
    found = from_toml("\n".join(f"{key} = {toml(value)}" for key, value in stated.items()))
    assert list(raw_problems(found.config.get("raw_arguments", ""), {})) == []


@given(st.dictionaries(st.sampled_from(sorted({*Dataset.model_fields, *ImageFolder.model_fields, *RAW}
                                              - {"subsets"})), PLAIN, max_size=12),
       st.sampled_from(["general", "datasets", "subsets"]))  # fmt: skip
def test_no_key_of_a_dataset_toml_disappears(stated: dict[str, Any], level: str) -> None:
    tables = {"general": "[general]", "datasets": "[[datasets]]", "subsets": "[[datasets.subsets]]"}
    lines = []
    for name, head in tables.items():
        own = stated if name == level else {}
        lines += [head, *(f"{key} = {toml(value)}" for key, value in own.items())]
    found = from_toml("", "\n".join(lines))
    prefix = {"general": "general", "datasets": "datasets.0", "subsets": "datasets.0.subsets.0"}[level]
    assert sorted(reported(found)) == sorted(f"{prefix}.{key}" for key in stated)
    dataset = found.config["datasets"][0]
    (subset,) = dataset["subsets"]
    for name in found.understood:
        key = name.rpartition(".")[2]
        if key in dataset or key in subset:
            assert is_same(stated[key], dataset.get(key, subset.get(key)))


def test_every_key_has_sd_scripts_default() -> None:
    for family in FACTS:
        found = defaults_of(family)
        for name in ("network", "training", "memory", "saving", "sampling"):
            assert found[name].keys() == SECTIONS[name].model_fields.keys()
        for name, values in found.items():
            SECTIONS[name].model_validate(values)
    assert DATASET.keys() == Dataset.model_fields.keys() - {"resolution", "subsets"}
    assert SUBSET.keys() == ImageFolder.model_fields.keys() - {"image_dir"}


@pytest.mark.parametrize("text", ["a = ", "\x00"])
def test_a_broken_toml_is_an_error(text: str) -> None:
    with pytest.raises(ConfigError, match="not TOML"):
        from_toml(text)


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_broken_json_is_an_error(text: str) -> None:
    with pytest.raises(ConfigError, match=r"JSON|object"):
        from_bmaltais(text)


@pytest.mark.parametrize(
    ("form", "what"),
    [
        ({"num_vectors_per_token": 8, "token_string": "x"}, "textual inversion"),
        ({"anima_checkbox": True}, "Anima"),
        ({"training": {"lr": 1}, "model": {}}, "FLOW"),
    ],
)
def test_a_training_that_the_studio_does_not_have_is_an_error(form: dict[str, Any], what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        from_bmaltais(json.dumps(form))


@pytest.mark.parametrize(
    ("config", "dataset"),
    [
        ("learning_rate = [1]", "general = 3"),
        ("resolution = []", "datasets = 3"),
        ("x = 1", "[[datasets]]\nsubsets = [1, 'a']\nresolution = 'wide'"),
    ],
)
def test_nonsense_is_left_to_the_check(config: str, dataset: str) -> None:
    assert TRAINER.check(from_toml(config, dataset).config)


def test_nonsense_in_a_form_is_left_to_the_check() -> None:
    found = from_bmaltais('{"max_resolution": "wide", "train_data_dir": {}, "epoch": "many", "seed": [1]}')
    assert TRAINER.check(found.config)


def test_a_mark_of_the_byte_order_is_no_part_of_a_file() -> None:
    assert from_toml("\ufefflearning_rate = 0.1").config["training"]["learning_rate"] == 0.1
    assert from_bmaltais('\ufeff{"learning_rate": 0.1}').config["training"]["learning_rate"] == 0.1
    assert not is_empty(0)
