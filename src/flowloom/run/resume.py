"""Changing the settings of a run that is resumed, within the limits that its checkpoints set."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from flowloom.config.flags import Overrides
from flowloom.config.flow_format.read import LoadedConfig, load_config
from flowloom.errors import ConfigError, Problem
from flowloom.files import write_json
from flowloom.json_types import is_object
from flowloom.run.directory import RunDir

IMMUTABLE_KEYS = (
    "training.master_seed",
    "training.change_layer_every",
    "training.trained_",
    "training.updates_per_large_batch",
    "dataloader.batch_size",
    "dataloader.base_resolution",
    "dataloader.resolution_step",
    "dataloader.ratio_cutoff",
    "dataloader.offset",
    "datasets",
    "batching",
    "model.use_x0",
    "lora",
    "method",
    "optimizer.kind",
    "validation.share",
)
"""Prefixes of our engine's keys that cannot change, because its checkpoints depend on them."""


def change_by_flags(run_dir: RunDir, overrides: Overrides) -> LoadedConfig:
    """Change a run of our engine by flags, and return its new configuration.

    Raises:
        ConfigError: a flag is wrong, or as `require_mutable`.
    """
    loaded = load_config(run_dir.read_run()["config"], overrides, run_dir.run_json)
    change_run(run_dir, loaded.config, IMMUTABLE_KEYS)
    return loaded


def change_run(run_dir: RunDir, config: BaseModel, immutable_keys: tuple[str, ...]) -> None:
    """Replace the configuration in run.json and append a record of the change, in one atomic write.

    Raises:
        ConfigError: as `require_mutable`.
    """
    content = run_dir.read_run()
    new = config.model_dump(mode="json")
    # Validated again, so that keys that are newer than the run are no change.
    old = run_dir.read_config_as(type(config)).model_dump(mode="json")
    require_mutable(run_dir, old, new, immutable_keys)
    if changes := dict(differences("", old, new)):
        record = {"time": round(time.time(), 3), "changes": changes}
        changed = [*content.get("changed", []), record]
        write_json(run_dir.run_json, content | {"config": new, "changed": changed})


def require_mutable(run_dir: RunDir, old: Any, new: Any, immutable_keys: tuple[str, ...]) -> None:
    """Raise ConfigError with each changed key that starts with one of `immutable_keys`."""
    paths = [path for path, _ in differences("", old, new) if path.startswith(immutable_keys)]
    if paths:
        message = "cannot change, because the run's checkpoints depend on it: start a new run."
        raise ConfigError(str(run_dir.path), [Problem(path, message) for path in paths])


def differences(path: str, old: Any, new: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """The keys under `path` in which two configurations differ, with their old and new values."""
    if old == new:
        return
    if is_object(old) and is_object(new):
        for name in {**old, **new}:
            yield from differences(f"{path}.{name}".lstrip("."), old.get(name), new.get(name))
    else:
        yield path, {"from": old, "to": new}
