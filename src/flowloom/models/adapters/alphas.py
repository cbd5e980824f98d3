"""The alphas of an adapter whose file has no tensor for them.

diffusers and SimpleTuner keep peft's configuration in the file's metadata, peft in adapter_config.json beside
the file, FLOW its own in training_config.json. Without any, a scale is 1.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flowloom.json_types import is_object
from flowloom.models.adapters.names import DIFFUSERS_PREFIX, FLOW_SUFFIXES
from flowloom.models.weights import Weights

PEFT_METADATA = "lora_adapter_metadata"
"""Metadata key of diffusers: peft's configuration as JSON, each key behind the name of a part."""

StatedAlpha = Callable[[str, int], float | None]
"""Alpha by the file's name of a layer and its rank; None if not stated."""


def stated_alphas(weights: Weights, notes: list[str]) -> StatedAlpha:
    """Alphas in the file's metadata, or in files next to it; notes for the user go to `notes`."""
    folder = weights.path if weights.path.is_dir() else weights.path.parent
    if all(name.endswith(FLOW_SUFFIXES) for name in weights):
        return _flows(weights, folder / "training_config.json", notes)
    inside = _json(weights.metadata.get(PEFT_METADATA, ""))
    if inside:
        return _pefts({key.removeprefix(DIFFUSERS_PREFIX): value for key, value in inside.items()})
    if any(name.startswith("base_model.model.") for name in weights):
        return _pefts(_read(folder / "adapter_config.json"))
    return _pefts({})


def _flows(weights: Weights, config: Path, notes: list[str]) -> StatedAlpha:
    given = _read(config).get("lora")
    section = given if is_object(given) else {}
    alpha = _number(section.get("alpha"))
    ranks = {shape[0] for name, shape in weights.shapes.items() if name.endswith(FLOW_SUFFIXES[0])}
    if alpha is not None and ranks == {section.get("rank")}:
        return lambda _layer, _rank: alpha
    notes.append(
        f"{weights.path.name}: FLOW does not write alpha into its adapters, and no {config.name} with the "
        "lora section of this one is beside it: alpha is taken to be the rank. If it was trained with "
        "another alpha, use alpha / rank as the strength."
    )
    return lambda _layer, _rank: None


def _pefts(config: Mapping[str, Any]) -> StatedAlpha:
    common, of_names = _number(config.get("lora_alpha")), config.get("alpha_pattern")
    is_rooted = config.get("use_rslora") is True

    def stated(layer: str, rank: int) -> float | None:
        names = of_names if is_object(of_names) else {}
        special = next((_number(alpha) for name, alpha in names.items() if _is_of(name, layer)), None)
        alpha = common if special is None else special
        # Rank-stabilised LoRA (Kalajdzievski 2023, arXiv:2312.03732) divides by the root of the rank.
        return alpha * math.sqrt(rank) if alpha is not None and is_rooted else alpha

    return stated


def _is_of(pattern: str, layer: str) -> bool:
    """True if peft's `pattern` matches `layer`: its full name after ^, otherwise its end."""
    name = pattern.removeprefix("^")
    return layer == name or (name == pattern and layer.endswith(f".{name}"))


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) and value > 0 else None


def _read(path: Path) -> dict[str, Any]:
    try:
        return _json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return {}


def _json(text: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return content if is_object(content) else {}
