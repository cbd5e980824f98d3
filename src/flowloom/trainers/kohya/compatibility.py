"""Checks for values that make sd-scripts fail late or do something else than its configuration says."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from flowloom.config.local_paths import local_problem
from flowloom.config.secrets import usable_secrets
from flowloom.errors import ConfigError, Problem
from flowloom.model_library.requirements import unreadable
from flowloom.trainers.kohya.arguments import path_in
from flowloom.trainers.kohya.buckets import impossible
from flowloom.trainers.kohya.config import Dataset, Hub, ImageFolder, KohyaConfig
from flowloom.trainers.kohya.copies import is_in_store, store_problems
from flowloom.trainers.kohya.families import FACTS
from flowloom.trainers.kohya.files import STYLES, script_of, style_of
from flowloom.trainers.kohya.prompt_options import read_prompt


def missing_files(config: KohyaConfig) -> Iterator[Problem]:
    """Files and folders that are not set or do not exist."""
    facts = FACTS[config.family]
    for key, value in config.model.model_dump().items():
        if not value and key in facts.needed:
            yield Problem(f"model.{key}", f"is needed for {facts.title}.", "missing")
        yield from _not_there(f"model.{key}", value)
        is_local = isinstance(value, str) and value and not is_in_store(value)
        if is_local and (problem := unreadable(Path(value).expanduser())):
            yield Problem(f"model.{key}", problem)
    yield from _not_there("network.network_weights", config.network.network_weights)
    for i, word in enumerate(config.network.network_args):
        place, path = f"network.network_args.{i}", path_in(word)
        yield from local_problem(place, path) if is_in_store(path) else _not_there(place, path)
    yield from store_problems(config)
    yield from _missing_data(config)


def _missing_data(config: KohyaConfig) -> Iterator[Problem]:
    if not any(dataset.subsets for dataset in config.datasets):
        yield Problem("datasets", "has no image folder: add one under subsets.")
    for i, dataset in enumerate(config.datasets):
        for j, subset in enumerate(dataset.subsets):
            place = f"datasets.{i}.subsets.{j}"
            yield from _no_folder(f"{place}.image_dir", subset.image_dir)
            for key in STYLES:
                yield from _not_there(f"{place}.{key}", getattr(subset, key))


def _no_folder(place: str, value: str) -> Iterator[Problem]:
    if is_in_store(value):
        return
    elsewhere = local_problem(place, value)
    yield from elsewhere
    # An empty path would be the folder where the studio runs.
    path = Path(value).expanduser()
    if not elsewhere and not (value and os.path.isdir(path)):  # noqa: PTH112 -- any text
        yield Problem(place, f"{value!r} is not a folder.")


def compatibility_problems(config: KohyaConfig) -> Iterator[Problem]:
    """Values that cannot be combined."""
    if script_of(config) is None:
        yield no_script(config)
    for i, dataset in enumerate(config.datasets):
        yield from _of_data(dataset, f"datasets.{i}", config)
    for i, prompt in enumerate(config.sampling.prompts):
        if not read_prompt(prompt).text:
            yield Problem(
                f"sampling.prompts.{i}", "is empty: sd-scripts would read its options as the prompt."
            )
    for i, word in enumerate(config.training.optimizer_args):
        if "/" in word or "~" in word:
            message = f"{word!r} looks like a path; no optimizer accepts one."
            yield Problem(f"training.optimizer_args.{i}", message)
    yield from _of_names(config)
    yield from _of_precision(config)
    yield from _of_hub(config.hub)


def no_script(config: KohyaConfig) -> Problem:
    """The problem of a family that sd-scripts trains only as a LoRA."""
    title = FACTS[config.family].title
    return Problem(
        "method", f"sd-scripts trains {title} only as a LoRA; use the FLOW trainer for a full fine-tune."
    )


def _not_there(place: str, value: str | None) -> Iterator[Problem]:
    if is_in_store(value):
        return
    elsewhere = local_problem(place, value or "")
    yield from elsewhere
    if value and not elsewhere and not os.path.exists(Path(value).expanduser()):  # noqa: PTH110 -- any text
        yield Problem(place, f"{value} does not exist.", "not-found")


def _of_data(dataset: Dataset, place: str, config: KohyaConfig) -> Iterator[Problem]:
    facts = FACTS[config.family]
    if dataset.bucket_reso_steps % facts.side:
        yield Problem(f"{place}.bucket_reso_steps", f"{facts.title} needs a multiple of {facts.side}.")
    if len({style_of(subset) for subset in dataset.subsets}) > 1:
        message = "set metadata_file, or masks, for all folders of a dataset or for none."
        yield Problem(f"{place}.subsets", message)
    yield from (Problem(f"{place}.{key}", message) for key, message in impossible(dataset))
    for j, subset in enumerate(dataset.subsets):
        yield from _of_folder(subset, f"{place}.subsets.{j}", is_encoded_once=_encodes_once(config))


def _of_folder(subset: ImageFolder, place: str, *, is_encoded_once: bool) -> Iterator[Problem]:
    varies = subset.shuffle_caption or subset.caption_dropout_rate or subset.caption_tag_dropout_rate
    if is_encoded_once and varies:
        yield Problem(place, "cached captions cannot be shuffled or dropped.")
    style = style_of(subset)
    for key in STYLES.get(style or "", ()):
        if getattr(subset, key) != ImageFolder.model_fields[key].default:
            yield Problem(f"{place}.{key}", f"cannot be combined with {style}.")


def _of_names(config: KohyaConfig) -> Iterator[Problem]:
    module = config.network.network_module
    if module and not re.fullmatch(r"networks\.\w+|lycoris\.kohya", module):
        yield Problem("network.network_module", f"{module!r} must be networks.* or lycoris.kohya.")
    if not re.fullmatch(r"[A-Za-z][\w.]*", config.training.optimizer_type):
        yield Problem(
            "training.optimizer_type", f"{config.training.optimizer_type!r} is not the name of a class."
        )


def _of_precision(config: KohyaConfig) -> Iterator[Problem]:
    training, is_lora = config.training, config.method == "lora"
    if training.full_bf16 and training.mixed_precision != "bf16":
        yield Problem("training.full_bf16", "needs mixed_precision bf16.")
    if config.memory.fp8_base and training.mixed_precision == "no" and is_lora:
        yield Problem("memory.fp8_base", "needs mixed_precision bf16 or fp16.")
    trains_text = config.family == "sdxl" and is_lora and not config.network.network_train_unet_only
    if trains_text and _encodes_once(config):
        message = "cached captions cannot train the text encoder: set network_train_unet_only."
        yield Problem("memory.cache_text_encoder_outputs", message)


def _of_hub(hub: Hub) -> Iterator[Problem]:
    """Checked here because sd-scripts only logs a failed upload and continues."""
    if hub.save_state_to_huggingface and not hub.huggingface_repo_id:
        yield Problem("hub.save_state_to_huggingface", "needs huggingface_repo_id.")
    if ".." in hub.huggingface_path_in_repo.split("/"):
        yield Problem("hub.huggingface_path_in_repo", "must stay inside the repository.")
    if hub.huggingface_repo_id and not _has_token():
        message = "uploads need HF_TOKEN: set it in the settings or in the environment."
        yield Problem("hub.huggingface_repo_id", message)


def _has_token() -> bool:
    """True if the secrets have one, or huggingface_hub's login has stored one."""
    home = Path(os.environ.get("HF_HOME") or "~/.cache/huggingface").expanduser()
    own = Path(os.environ.get("HF_TOKEN_PATH") or home / "token")
    try:
        return "HF_TOKEN" in usable_secrets() or own.is_file()
    except ConfigError:
        return own.is_file()


def _encodes_once(config: KohyaConfig) -> bool:
    memory = config.memory
    return bool(memory.cache_text_encoder_outputs or memory.cache_text_encoder_outputs_to_disk)
