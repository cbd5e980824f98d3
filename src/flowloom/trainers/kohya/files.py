"""A configuration as the files that sd-scripts reads: config.toml, dataset.toml, prompts.txt."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flowloom.json_types import is_array
from flowloom.trainers.kohya.arguments import absolute_in
from flowloom.trainers.kohya.config import ImageFolder, KohyaConfig, Sampling
from flowloom.trainers.kohya.families import FACTS, SAMPLING
from flowloom.trainers.kohya.prompt_options import Prompt, read_prompt

_SECTIONS = ("model", "network", "training", "flow", "memory", "saving")
_PATHS = frozenset({"image_dir", "metadata_file", "conditioning_data_dir"})
STYLES = {
    "metadata_file": ("is_reg", "class_tokens", "caption_extension", "conditioning_data_dir"),
    "conditioning_data_dir": ("is_reg", "class_tokens", "alpha_mask"),
}
"""Keys that decide how sd-scripts reads a folder, and the keys that it then refuses."""


def script_of(config: KohyaConfig) -> str | None:
    """The script that trains this configuration; None if sd-scripts has none."""
    facts = FACTS[config.family]
    if config.method == "lora":
        return facts.lora_script
    has_metadata = any(style_of(subset) == "metadata_file" for subset in _subsets(config))
    return (facts.metadata_script if has_metadata else None) or facts.full_script


def style_of(subset: ImageFolder) -> str | None:
    """The key that decides how sd-scripts reads a folder; None: images with caption files."""
    return next((key for key in STYLES if getattr(subset, key)), None)


def _subsets(config: KohyaConfig) -> Iterator[ImageFolder]:
    return (subset for dataset in config.datasets for subset in dataset.subsets)


def arguments_of(config: KohyaConfig, folder: Path) -> dict[str, Any]:
    """The script's arguments by name, as in config.toml; `folder` is the run's directory."""
    values = _chosen(config) | {
        "dataset_config": str(folder / "dataset.toml"),
        "output_dir": str(folder / "checkpoints"),
        "save_model_as": "safetensors",
        "logging_dir": str(folder / "logs"),
        "log_with": "tensorboard",
        "console_log_simple": True,
    }
    if config.hub.huggingface_repo_id:
        # Also if the folder is empty: without one, sd-scripts uploads nothing.
        values |= config.hub.model_dump(mode="json")
    if any(style_of(subset) == "conditioning_data_dir" for subset in _subsets(config)):
        values["masked_loss"] = True
    return values | _sampling(config.sampling, folder)


def _sampling(sampling: Sampling, folder: Path) -> dict[str, Any]:
    """The steps at which previews are generated, and the prompt file; empty without a prompt."""
    if not sampling.prompts:
        return {}
    names = ("sample_every_n_steps", "sample_every_n_epochs", "sample_at_first")
    when = {name: value for name in names if (value := getattr(sampling, name))}
    return {"sample_prompts": str(folder / "prompts.txt"), **when}


def _chosen(config: KohyaConfig) -> dict[str, Any]:
    """The values of the configuration, with the family's defaults for missing ones."""
    facts = FACTS[config.family]
    values: dict[str, Any] = dict(facts.values)
    for name in _SECTIONS:
        if (name == "network" and config.method == "full") or (name == "flow" and not facts.flows):
            continue
        section = getattr(config, name).model_dump(mode="json")
        values |= {key: value for key, value in section.items() if value not in (None, [], "")}
    attention = values.pop("attention")
    values |= {attention: True} if attention != "none" else {}
    if values.get("max_token_length") == 75:
        del values["max_token_length"]  # sd-scripts' own, which it does not accept as a value
    if config.method == "lora":
        values.setdefault("network_module", facts.network_module)
    else:
        values.pop("network_train_unet_only", None)
    for key in values.keys() & {*type(config.model).model_fields, "network_weights"}:
        values[key] = str(Path(values[key]).expanduser().absolute())
    if "network_args" in values:
        values["network_args"] = [absolute_in(word) for word in values["network_args"]]
    if config.training.max_train_epochs:
        values.pop("max_train_steps", None)
    return values


def write_files(config: KohyaConfig, folder: Path) -> None:
    """Write the three files into the run's directory."""
    values = arguments_of(config, folder)
    lines = [f"{key} = {toml(value)}" for key, value in values.items()]
    (folder / "config.toml").write_text("\n".join(["[arguments]", *lines]) + "\n")
    (folder / "dataset.toml").write_text("\n".join(_dataset_lines(config)) + "\n")
    (folder / "prompts.txt").write_text("".join(f"{line}\n" for line in prompt_lines(config)))


def prompt_lines(config: KohyaConfig) -> list[str]:
    """Prompts with their options, as sd-scripts reads them; options in a line override the keys."""
    sampling = config.sampling
    right = SAMPLING.get(config.family, {})
    shared = {
        "n": sampling.negative,
        "w": sampling.width,
        "h": sampling.height,
        "s": sampling.steps,
        "d": sampling.seed,
        "l": _given(sampling, "scale", right.get("l")),
        "g": _given(sampling, "guidance", right.get("g")),
    }
    usual = {name: _plain(value) for name, value in shared.items() if value not in (None, "")}
    return [_line(read_prompt(" ".join(prompt.split())), usual) for prompt in sampling.prompts]


def _line(prompt: Prompt, usual: dict[str, str]) -> str:
    # Unknown options stay part of the prompt.
    text = _plain(" ".join([prompt.text, *prompt.unknown]))
    # A line that begins with a hash is a comment.
    return Prompt(f"{' ' * text.startswith('#')}{text}", usual | prompt.options).line


def _given(sampling: Sampling, name: str, right: float | None) -> float | None:
    value = getattr(sampling, name)
    return right if value is None else value


def _plain(value: Any) -> str:
    """`text` on one line, without the two dashes that would begin an option."""
    return f"{value:g}" if isinstance(value, float) else " ".join(str(value).split()).replace("--", "- -")


def _dataset_lines(config: KohyaConfig) -> Iterator[str]:
    for dataset in config.datasets:
        yield "[[datasets]]"
        own = dataset.model_dump(mode="json", exclude={"subsets"})
        yield from (f"{key} = {toml(value)}" for key, value in own.items())
        for subset in dataset.subsets:
            yield "[[datasets.subsets]]"
            refused = set(STYLES.get(style_of(subset) or "", ()))
            for key, value in subset.model_dump(mode="json", exclude=refused).items():
                if value is not None:
                    known = str(Path(value).expanduser().absolute()) if key in _PATHS else value
                    yield f"{key} = {toml(known)}"


def toml(value: Any) -> str:
    """`value` as TOML: texts, numbers, booleans, and lists of these."""
    if is_array(value):
        return f"[{', '.join(map(toml, value))}]"
    if isinstance(value, float):
        return repr(value)
    # A basic TOML string is a JSON string, except for the DEL character.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
