"""Configurations that people have: sd-scripts' TOML, and the JSON that bmaltais' kohya_ss saves."""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from flowloom.errors import ConfigError, Problem
from flowloom.text_files import without_mark
from flowloom.trainers.kohya.config import DataSet, ImageFolder, KohyaConfig

_SECTIONS = ("model", "network", "training", "flow", "memory", "saving", "hub")
_HOMES = {key: name for name in _SECTIONS for key in type(getattr(KohyaConfig(), name)).model_fields}
_SETS = frozenset(DataSet.model_fields) - {"subsets"}
_SUBSETS = frozenset(ImageFolder.model_fields)
_RENAMED = {
    "train_batch_size": "batch_size",
    "max_resolution": "resolution",
    "optimizer": "optimizer_type",
    "epoch": "max_train_epochs",
    "lr_warmup": "",
    "train_data_dir": "image_dir",
    "stop_text_encoder_training": "",
}
"""bmaltais' and older names; empty: has no counterpart that means the same."""
_OURS = frozenset(
    {
        "config_file",
        "console_log_simple",
        "dataset_config",
        "log_with",
        "logging_dir",
        "model_type",
        "output_dir",
        "sample_prompts",
        "save_model_as",
    }
)
"""What the studio sets itself."""


_SECRETS = {"huggingface_token": "HF_TOKEN", "wandb_api_key": "WANDB_API_KEY"}
"""Keys that hold a secret, and the name by which the studio keeps it."""


@dataclass
class Imported:
    """What a file said, in our words."""

    config: dict[str, Any]
    understood: list[str] = field(default_factory=list)
    left_over: dict[str, Any] = field(default_factory=dict)
    """Keys that have no place here, with their values."""
    dropped: dict[str, str] = field(default_factory=dict)
    """Keys that held a secret, and what to do instead: their values are told nobody."""


def from_toml(text: str, dataset_toml: str = "") -> Imported:
    """A config TOML, its sections flattened as sd-scripts does, and the dataset TOML that it names.

    Raises:
        ConfigError: one of them is no TOML.
    """
    values: dict[str, Any] = {}
    for key, value in _toml("toml", text).items():
        values |= value if isinstance(value, dict) else {key: value}
    found = _sorted(values)
    if dataset_toml:
        found.config["datasets"] = _datasets(_toml("dataset_toml", dataset_toml), found)
    return found


def from_bmaltais(text: str) -> Imported:
    """The JSON of kohya_ss' form. Empty texts and zeros stand for nothing there.

    Raises:
        ConfigError: it is no JSON object.
    """
    try:
        content = json.loads(without_mark(text))
    except ValueError as error:
        raise ConfigError("json", [Problem("json", f"not JSON: {error}.")]) from None
    if not isinstance(content, dict):
        raise ConfigError("json", [Problem("json", "holds no object.")])
    given = {key: value for key, value in content.items() if value not in ("", None, [], 0, 0.0, False)}
    found = _sorted({key: _number(key, value) for key, value in given.items()})
    if found.left_over.get("LoRA_type") in ("Standard", "Flux1", "SD3"):
        del found.left_over["LoRA_type"]
    return found


def _toml(name: str, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(without_mark(text))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(name, [Problem(name, f"not TOML: {error}.")]) from None


def _number(key: str, value: Any) -> Any:
    """bmaltais writes most numbers as texts, and a resolution as 512,512."""
    if not isinstance(value, str) or key in ("output_name", "network_module"):
        return value
    if key == "max_resolution":
        value = value.partition(",")[0]
    if key in ("network_args", "optimizer_args"):
        return value.split()
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value


def _sorted(values: dict[str, Any]) -> Imported:
    """Every key at its place, or left over."""
    found = Imported({"family": _family(values)})
    one_set: dict[str, Any] = {}
    subset: dict[str, Any] = {}
    places: list[tuple[Any, type[BaseModel], dict[str, Any]]] = [
        (_SETS, DataSet, one_set),
        (_SUBSETS, ImageFolder, subset),
    ]
    for given, value in values.items():
        key = _RENAMED.get(given, given)
        if key in _HOMES:
            section = found.config.setdefault(_HOMES[key], {})
            section[key] = _as_field(type(getattr(KohyaConfig(), _HOMES[key])), key, value)
        elif place := next((place for place in places if key in place[0]), None):
            place[2][key] = _as_field(place[1], key, value)
        elif given in ("sdpa", "xformers"):
            found.config.setdefault("training", {})["attention"] = given
        elif given in _SECRETS:
            found.dropped[given] = (
                f"a secret is no part of a configuration: set {_SECRETS[given]} in settings."
            )
            continue
        elif given not in _OURS:
            found.left_over[given] = value
            continue
        found.understood.append(given)
    if "image_dir" in subset:
        found.config["datasets"] = [{**one_set, "subsets": [subset]}]
    else:
        found.left_over |= one_set | subset
    return found


def _as_field(section: type[BaseModel], key: str, value: Any) -> Any:
    """A whole number where the field takes one only as a float, and the other way round."""
    if isinstance(value, list) and value and key == "resolution":
        value = value[0]
    kind = section.model_fields[key].annotation
    return int(value) if isinstance(value, float) and value.is_integer() and "int" in str(kind) else value


def _family(values: dict[str, Any]) -> str:
    """Told by the keys that only one of them has."""
    if values.get("model_type") == "chroma":
        return "chroma"
    if "gemma2" in values:
        return "lumina"
    if "clip_g" in values or values.get("sd3_checkbox"):
        return "sd3"
    if "ae" in values or values.get("flux1_checkbox"):
        return "flux"
    return "sdxl" if values.get("sdxl") or values.get("no_half_vae") else "sd15"


def _datasets(content: dict[str, Any], found: Imported) -> list[dict[str, Any]]:
    """Sets and folders, what stands in [general] or in a set handed down to them."""
    general = _table(content.get("general"))
    sets = []
    for i, dataset in enumerate(_tables(content.get("datasets"))):
        handed = {**general, **{key: value for key, value in dataset.items() if key != "subsets"}}
        subsets = []
        for j, subset in enumerate(_tables(dataset.get("subsets"))):
            whole = {key: value for key, value in handed.items() if key in _SUBSETS} | subset
            subsets.append({key: value for key, value in whole.items() if key in _SUBSETS})
            strange = whole.keys() - _SUBSETS
            found.left_over |= {f"datasets.{i}.subsets.{j}.{key}": whole[key] for key in strange}
        own = {key: _as_field(DataSet, key, value) for key, value in handed.items() if key in _SETS}
        found.left_over |= {
            f"datasets.{i}.{key}": value for key, value in handed.items() if key not in _SETS | _SUBSETS
        }
        sets.append({**own, "subsets": subsets})
    return sets


def _table(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _tables(value: Any) -> list[dict[str, Any]]:
    return [_table(one) for one in value] if isinstance(value, list) else []
