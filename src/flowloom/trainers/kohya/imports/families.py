"""The family and method of a file; sd-scripts has them in its command line only."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from flowloom.errors import ConfigError, Problem

_NAMES = (
    ("chroma", re.compile(r"chroma", re.I)),
    ("flux", re.compile(r"flux", re.I)),
    ("sd3", re.compile(r"sd_?-?3|stable-diffusion-3", re.I)),
    ("lumina", re.compile(r"lumina", re.I)),
    ("sdxl", re.compile(r"sd_?-?xl|xl(?![a-z])|pony|illustrious|noobai|animagine", re.I)),
)
"""Families by the file names of base models."""
_MARKS = (
    ("lumina", "lumina_checkbox", ("gemma2",)),
    ("sd3", "sd3_checkbox", ("clip_g",)),
    ("flux", "flux1_checkbox", ("ae",)),
    ("sdxl", "sdxl", ("no_half_vae", "learning_rate_te2")),
    ("sdxl", "sdxl_checkbox", ()),
)
"""Switches of kohya_ss, and keys that only one family has."""
_NOT_TRAINED = {
    "hunyuan_image_checkbox": "HunyuanImage",
    "anima_checkbox": "Anima",
    "num_vectors_per_token": "textual inversion",
    "token_string": "textual inversion",
}
_NETWORK = ("network_module", "network_dim", "network_alpha", "network_args", "LoRA_type", "dim_from_weights")
_FULL = (
    "pretrained_model_name_or_path",
    "train_text_encoder",
    "learning_rate_te",
    "learning_rate_te1",
    "train_dir",
    "image_folder",
    "in_json",
    "fused_backward_pass",
    "block_lr",
)
"""Keys of full fine-tunes, if there are no keys of adapters."""


def is_on(value: Any) -> bool:
    """True if a switch is on; it may be a string."""
    return value is True or str(value).lower() in ("true", "1")


def require_known(kind: str, values: Mapping[str, Any]) -> None:
    """Raise ConfigError if a file needs a training method that the studio does not support."""
    for key, what in _NOT_TRAINED.items():
        value = values.get(key)
        is_stated = is_on(value) if key.endswith("checkbox") else value not in (None, "", 0)
        if is_stated:
            message = f"{key} = {value!r}: this is {what}, which the studio does not train with sd-scripts."
            raise ConfigError(kind, [Problem(kind, message)])


def family_of(values: Mapping[str, Any]) -> str:
    """The family by keys that only one family has, or else by the name of the base model."""
    if values.get("model_type") == "chroma" and not _is_off(values, "flux1_checkbox"):
        return "chroma"
    for family, switch, keys in _MARKS:
        if is_on(values.get(switch)):
            return family
        if not _is_off(values, switch) and any(_has(values, key) for key in keys):
            return family
    return _by_name(values)


def _by_name(values: Mapping[str, Any]) -> str:
    is_stated = any(name in values for name in ("sdxl", "flux1_checkbox")) or is_on(values.get("v2"))
    text = f"{values.get('network_module', '')} {values.get('pretrained_model_name_or_path', '')}"
    if is_stated:
        return "sd15"
    return next((family for family, pattern in _NAMES if pattern.search(text)), "sd15")


def method_of(values: Mapping[str, Any]) -> str:
    """LoRA if a key of an adapter is set; other scripts train the full network."""
    is_full = any(_has(values, key) for key in _FULL)
    return "full" if is_full and not any(key in values for key in _NETWORK) else "lora"


def _has(values: Mapping[str, Any], key: str) -> bool:
    return values.get(key) not in (None, "", False, 0)


def _is_off(values: Mapping[str, Any], key: str) -> bool:
    return key in values and not is_on(values[key])
