"""`flowloom export`: a run's adapter in another program's format, or merged into its base."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch import Tensor

from flowloom.config.remote_models import with_local_models
from flowloom.engine import checkpoint
from flowloom.errors import RunError, WeightsError
from flowloom.model_library.requirements import adapter_family, unfit_adapter, unfit_base
from flowloom.models.adapters.dora import BaseWeight
from flowloom.models.adapters.formats import Form, adapter_content, adapter_metadata
from flowloom.models.adapters.fused import layers_of
from flowloom.models.adapters.merge import merge
from flowloom.models.adapters.read import read_adapter
from flowloom.models.adapters.verify import Verified, rules_for, verify
from flowloom.models.family import ModelFamily, detect, family_for
from flowloom.models.header import PICKLED
from flowloom.models.weight_files import some_names
from flowloom.models.weights import open_weights, save_weights
from flowloom.run.directory import versions
from flowloom.run.model_source import config_around


class Exported(NamedTuple):
    """A written export."""

    notes: list[str]
    """For the user, on the adapter."""
    verified: Verified
    """By the rules of the program that it is for."""


def export_adapter(
    source: Path,
    form: Form,
    out_path: Path,
    weights: Literal["ema", "raw"] = "ema",
    base: Path | None = None,
) -> Exported:
    """Write the adapter of `source` (a run, checkpoint or adapter file) in the format `form`.

    Args:
        base: the base model, which only some conversions of a DoRA need; None: the run's.

    Returns:
        notes for the user on the adapter, and a line on what was verified.

    Raises:
        RunError: `source` holds no adapter.
        WeightsError: the file is no known adapter, needs a base model that is missing, or would not load as
            trained.
    """
    base = base or _base_of(source)
    family = _family(source, base)
    path = _find_adapter(source, weights, family)
    state, meta = read_adapter(path, family)
    metadata = open_weights(path).metadata
    config, dataset = (
        metadata.get("flowloom.config", "{}"),
        json.loads(metadata.get("flowloom.dataset", "{}")),
    )
    said = adapter_metadata(meta, config, dataset, versions())
    rules, weight_of = rules_for(form, meta), _weight_of(base) if base else None
    if base:
        _check_sizes(base, path, state, meta)
    tensors, said = adapter_content(form, state, meta, said, weight_of)
    verified = verify(rules, tensors, state, meta, weight_of)
    save_weights(out_path, tensors, said)
    return Exported(meta["notes"], verified)


def _check_sizes(base: Path, adapter: Path, state: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Raise WeightsError if `base` has other sizes than the layers of the adapter; it may be gone by now."""
    if not base.exists() or base.suffix in PICKLED:  # a pickle has no header to read
        return
    shapes = detect(base).open_weights(base).shapes
    wrong = [
        name
        for name, layer in layers_of(state, meta).items()
        if shapes.get(f"{name}.weight", layer.shape) != layer.shape
    ]
    if wrong:
        raise WeightsError(
            f"{adapter} has {len(wrong)} layers of other sizes than {base} has ({some_names(wrong, 1)}): no "
            "program can load it on that base. Name the base that it was trained on."
        )


def _base_of(source: Path) -> Path | None:
    """The base model of the run that contains `source`, downloaded if it is in a store."""
    config = config_around(source)
    return with_local_models(config).model.network_path if config else None


def _family(source: Path, base: Path | None) -> ModelFamily | None:
    """The family that an adapter is for: its run's, its base's, or that of its layers; None if unknown."""
    config = config_around(source)
    if config:
        return family_for(config.model)
    if base:
        return detect(base)
    return adapter_family(source) if source.is_file() else None


def _weight_of(base: Path) -> BaseWeight:
    opened = cache(detect(base).open_weights)  # when a weight is needed: most exports need none

    def weight(layer: str) -> Tensor:
        try:
            return opened(base)[f"{layer}.weight"]
        except KeyError as error:
            raise WeightsError(f"{base} has no layer {layer}. Name the base of this adapter.") from error

    return weight


def merge_adapter(
    source: Path,
    base: Path | None,
    out_path: Path,
    strength: float = 1.0,
    weights: Literal["ema", "raw"] = "ema",
    on_tensor: Callable[[int, int], None] | None = None,
) -> list[str]:
    """Write `base` with the adapter of `source` in it, at `strength`; see `merge` for `on_tensor`.

    Args:
        base: the base model; None: the base of `source`'s run.

    Returns:
        notes for the user on the adapter.

    Raises:
        RunError: `source` holds no adapter, or its base is unknown.
        WeightsError: the adapter does not fit the base.
    """
    base = base or _base_of(source)
    path = _find_adapter(source, weights, _family(source, base))
    if base is None:
        raise RunError(f"the base model of {path} is unknown: name it with --base FILE.")
    unfit = unfit_base(base)
    if unfit:
        raise WeightsError(unfit)
    return merge(base, path, out_path, strength, on_tensor=on_tensor)


def _find_adapter(source: Path, weights: Literal["ema", "raw"], family: ModelFamily | None) -> Path:
    path = checkpoint.find_weights(source, weights)
    if path != source and path.name in (checkpoint.MODEL, checkpoint.EMA_MODEL):
        raise RunError(f"{source} holds a complete model, which needs no export: load {path}.")
    unfit = unfit_adapter(path, family)
    if unfit:
        raise WeightsError(unfit)
    return path
