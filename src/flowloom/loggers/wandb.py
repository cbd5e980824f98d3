"""Weights & Biases."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from flowloom.errors import TrainingError
from flowloom.loggers.base import (
    Logger,
    LoggerSpec,
    cannot_open,
    previews,
    remember,
    remembered,
    scalars,
)
from flowloom.printable import printable


class WandB(LoggerSpec):
    """Scalars and samples for Weights & Biases; the key comes from WANDB_API_KEY, never from here."""

    kind: Literal["wandb"] = "wandb"
    project: str = "flowloom"
    """FLOW's `wandb_project`."""
    run: str | None = None
    """FLOW's `wandb_run`: the name shown; null: the run directory's."""
    entity: str | None = None
    """FLOW's `wandb_entity`: user or team; null: the key's own."""
    mode: Literal["online", "offline", "disabled"] = "online"
    """offline: write into the run directory's `wandb/`, for `wandb sync` later."""
    images: bool = True
    """Show the previews as well."""

    def build(self, run_dir: Path, config: dict[str, Any]) -> Logger:
        try:
            import wandb
            from wandb.errors import Error
        except ImportError as error:
            raise cannot_open("wandb", error, "pip install 'flowloom[wandb]'") from error
        if self.mode == "online" and not os.environ.get("WANDB_API_KEY"):
            hint = (
                "Set the environment variable WANDB_API_KEY, or set mode offline and run 'wandb sync' later."
            )
            raise cannot_open("wandb", "WANDB_API_KEY is not set", hint)
        id_path = run_dir / "wandb" / "run_id"
        try:
            run = wandb.init(  # pyright: ignore[reportAttributeAccessIssue, reportUnknownVariableType]
                project=printable(self.project),
                entity=self.entity,
                name=printable(self.run or run_dir.name),
                id=remembered(id_path),
                resume="allow" if self.mode == "online" else None,
                mode=self.mode,
                dir=run_dir,
                config=config,
                settings=_private_settings(wandb),
            )
        except Error as error:
            raise cannot_open(
                "wandb", error, "Fix it, or set mode offline and run 'wandb sync' later."
            ) from error
        remember(id_path, run.id)  # pyright: ignore[reportUnknownArgumentType]
        # Validation and samples may arrive after later steps, so each row has its step.
        run.define_metric("*", step_metric="step")
        return _WandBLogger(self, run_dir, wandb, run)


def _private_settings(wandb: Any) -> Any:
    """Settings without console, source code, git state, packages and machine description."""
    return wandb.Settings(
        console="off",
        silent=True,
        save_code=False,
        disable_git=True,
        x_disable_meta=True,
        x_disable_stats=True,
        x_disable_machine_info=True,
        x_save_requirements=False,
    )


class _WandBLogger:
    def __init__(self, spec: WandB, run_dir: Path, wandb: Any, run: Any):
        self.spec = spec
        self.run_dir = run_dir
        self.wandb = wandb
        self.run = run

    def log(self, event: dict[str, Any]) -> None:
        step = event.get("step", 0) + self.spec.first_step
        try:
            row: dict[str, Any] = dict(scalars(event))
            for name, path, prompt in previews(self.run_dir, event) if self.spec.images else ():
                row[name] = self.wandb.Image(str(path), caption=prompt)
            if row:
                self.run.log(row | {"step": step})
        except (self.wandb.errors.Error, OSError, ValueError) as error:
            raise TrainingError(f"wandb: {error}. The run continues without it.") from error

    def close(self) -> None:
        with suppress(self.wandb.errors.Error, OSError):
            self.run.finish()
