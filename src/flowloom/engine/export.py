"""`flowloom export`: a run's adapter in the form that another program loads, or inside its base."""

from __future__ import annotations

import json
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
from flowloom.spec.rundir import RunDir, versions

FORMATS = {"comfy": to_comfy, "kohya": to_kohya, "diffusers": to_diffusers}


def export_adapter(source: Path, form: str, out_path: Path, weights: Literal["ema", "raw"] = "ema") -> None:
    """Write the adapter of `source`, a run, checkpoint or adapter file, by the names of `form`.

    Raises:
        RunError: `source` holds no adapter.
        WeightsError: the file is no adapter that we know.
    """
    path = find_adapter(source, weights)
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
) -> None:
    """Write `base` with the adapter of `source` in it, at `strength`.

    Raises:
        RunError: `source` holds no adapter, or nothing says what it was trained on.
        WeightsError: the adapter does not fit the base.
    """
    path = find_adapter(source, weights)
    if base is None:
        raise RunError(f"{path} does not say what it was trained on: name the base model with --base FILE.")
    merge(base, path, out_path, strength)


def find_adapter(source: Path, weights: Literal["ema", "raw"] = "ema") -> Path:
    """The adapter file that `source` means: itself, a checkpoint's, or that of a run's newest checkpoint.

    Raises:
        RunError: there is none.
    """
    if source.is_file():
        return source
    folder: Path | None = source
    if not source.name.startswith("step_"):
        folder = RunDir.open(source).latest_checkpoint()
    if folder is None or not folder.is_dir():
        raise RunError(f"{source}: there is no checkpoint here.")
    names = (checkpoint.EMA_ADAPTER, checkpoint.ADAPTER) if weights == "ema" else (checkpoint.ADAPTER,)
    found = next((folder / name for name in names if (folder / name).exists()), None)
    if found:
        return found
    if (folder / checkpoint.MODEL).exists():
        whole = folder / checkpoint.MODEL
        raise RunError(f"{folder} holds a whole model, which needs no export: {whole} loads as it is.")
    raise RunError(f"{folder}: neither {checkpoint.ADAPTER} nor {checkpoint.MODEL} is here.")
