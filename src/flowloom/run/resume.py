"""Resume a run with changed settings, as far as its checkpoints allow."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from flowloom.config.flags import Overrides
from flowloom.config.flow_format.read import LoadedConfig, load_config
from flowloom.errors import ConfigError, Problem
from flowloom.files import write_json
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
"""Prefixes of keys that a checkpoint and its position in the data depend on."""


def change_run(run_dir: RunDir, overrides: Overrides) -> LoadedConfig:
    """Apply `overrides` to the run's configuration, and record the change in `run.json`.

    Raises:
        ConfigError: a flag is wrong, or changes a key that the run's checkpoints depend on.
    """
    content = run_dir.read_run()
    loaded = load_config(content["config"], overrides, run_dir.run_json)
    config = loaded.config.model_dump(mode="json")
    changes = dict(differences("", run_dir.read_config().model_dump(mode="json"), config))
    immutable = [path for path in changes if path.startswith(IMMUTABLE_KEYS)]
    if immutable:
        message = "cannot change, because the run's checkpoints depend on it: start a new run."
        raise ConfigError(str(run_dir.path), [Problem(f"--{path}", message) for path in immutable])
    if changes:
        record = {"time": round(time.time(), 3), "changes": changes}
        content |= {"config": config, "changed": [*content.get("changed", []), record]}
        write_json(run_dir.run_json, content)
    return loaded


def differences(path: str, old: Any, new: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """The differences between two configurations, by dotted path below `path`."""
    if old == new:
        return
    if isinstance(old, dict) and isinstance(new, dict):
        for name in {**old, **new}:
            yield from differences(f"{path}.{name}".lstrip("."), old.get(name), new.get(name))
    else:
        yield path, {"from": old, "to": new}
