"""`flowloom export`: a run's adapter in the form that another program loads, or inside its base."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from flowloom.engine import checkpoint
from flowloom.errors import RunError
from flowloom.parts.adapters.formats import (
    adapter_metadata,
    read_adapter,
    to_comfy,
    to_diffusers,
    to_kohya,
)
from flowloom.parts.adapters.merge import merge
from flowloom.parts.families.weights import open_weights, save_weights
from flowloom.spec.rundir import versions

FORMATS = {"comfy": to_comfy, "kohya": to_kohya, "diffusers": to_diffusers}


def export_adapter(source: Path, form: str, out_path: Path, weights: Literal["ema", "raw"] = "ema") -> None:
    """Write the adapter of `source`, a run, checkpoint or adapter file, by the names of `form`.

    Raises:
        RunError: `source` holds no adapter.
        WeightsError: the file is no adapter that we know.
    """
    path = _find_adapter(source, weights)
    state, meta = read_adapter(path)
    told = open_weights(path).metadata
    config, dataset = told.get("flowloom.config", "{}"), json.loads(told.get("flowloom.dataset", "{}"))
    save_weights(out_path, FORMATS[form](state, meta), adapter_metadata(meta, config, dataset, versions()))


def merge_adapter(
    source: Path,
    base: Path | None,
    out_path: Path,
    strength: float = 1.0,
    weights: Literal["ema", "raw"] = "ema",
    on_tensor: Callable[[int, int], None] | None = None,
) -> None:
    """Write `base` with the adapter of `source` in it, at `strength`; see `merge` for `on_tensor`.

    Raises:
        RunError: `source` holds no adapter, or nothing says what it was trained on.
        WeightsError: the adapter does not fit the base.
    """
    path = _find_adapter(source, weights)
    if base is None:
        raise RunError(f"{path} does not say what it was trained on: name the base model with --base FILE.")
    merge(base, path, out_path, strength, on_tensor=on_tensor)


def _find_adapter(source: Path, weights: Literal["ema", "raw"]) -> Path:
    path = checkpoint.find_weights(source, weights)
    if path != source and path.name in (checkpoint.MODEL, checkpoint.EMA_MODEL):
        raise RunError(f"{source} holds a whole model, which needs no export: {path} loads as it is.")
    return path
