"""Base class of trackers, and the parts of events that they show."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Protocol

from pydantic import Field

from flowloom.errors import ConfigError, Problem
from flowloom.image_suffixes import COMMON_SUFFIXES, POSTER
from flowloom.loggers.metrics import METRICS
from flowloom.schema import Section

STEP_CURVES = (*METRICS, "epoch")
"""Fields of a step event that are shown as curves."""


class Logger(Protocol):
    """Follows a run's events. Called from the engine's process with each event as it is written."""

    def log(self, event: dict[str, Any]) -> None:
        """Show one event.

        Raises:
            TrainingError: the tracker failed; the run can continue without it.
        """
        ...

    def close(self) -> None:
        """Write the remaining data. Never raises: the run is over, and `events.jsonl` has everything."""
        ...


class LoggerSpec(Section):
    """A tracker besides `events.jsonl`, which is always written."""

    first_step: Annotated[int, Field(ge=0)] = 0
    """Added to the run's steps: FLOW's `aim_steps`, for a run that continues another one."""

    def build(self, run_dir: Path, config: dict[str, Any]) -> Logger:
        """Open the tracker for the run in `run_dir` with its configuration, which has no secrets.

        A resumed run continues its curves in the tracker.

        Raises:
            ConfigError: the tracker cannot be opened, or its package is missing.
        """
        raise NotImplementedError


def scalars(event: dict[str, Any]) -> dict[str, float]:
    """The curves' names and values in an event; empty for kinds that have none."""
    if event["kind"] == "step":
        shown = {f"train/{name}": event.get(name) for name in STEP_CURVES}
        for i, loss in enumerate(event.get("loss_by_noise_level") or ()):
            shown[f"train/loss_by_noise_level/{i}"] = loss
    elif event["kind"] == "validated":
        prefix = f"validation/{event['weights']}"
        shown = {f"{prefix}/loss": event["loss"]}
        shown |= {f"{prefix}/loss_at_{quantile}": loss for quantile, loss in event["by_quantile"].items()}
    else:
        shown = {}
    return {name: float(value) for name, value in shown.items() if value is not None}


def previews(run_dir: Path, event: dict[str, Any]) -> Iterator[tuple[str, Path, str]]:
    """Name, file and prompt of each image in a `sampled` event; nothing for other kinds."""
    if event["kind"] != "sampled":
        return
    folder = run_dir / event["dir"]
    records_path = folder / "samples.json"
    records: list[dict[str, Any]] = json.loads(records_path.read_text()) if records_path.exists() else []
    prompts = {record["file"]: record.get("prompt", "") for record in records}
    # Trackers show the poster of a clip under the clip's name.
    prompts |= {record["poster"]: record.get("prompt", "") for record in records if "poster" in record}
    for path in sorted(path for path in folder.iterdir() if path.suffix in COMMON_SUFFIXES):
        yield f"samples/{path.stem.removesuffix(POSTER)}", path, prompts.get(path.name, "")


def remembered(path: Path) -> str | None:
    """The tracker's name of the run, as written by `remember`."""
    return path.read_text().strip() if path.exists() else None


def remember(path: Path, name: str) -> None:
    """Store the tracker's name of the run, so that a resumed run continues under it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{name}\n")


def cannot_open(kind: str, reason: object, hint: str) -> ConfigError:
    """The error of a tracker that cannot be opened."""
    return ConfigError("loggers", [Problem(f"loggers ({kind})", f"{reason}.", hint=hint)])
