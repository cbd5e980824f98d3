"""Aim, FLOW's own tracker."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from flowloom.errors import TrainingError
from flowloom.import_warnings import quiet_imports
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


class Aim(LoggerSpec):
    """Scalars and samples for Aim, an optional package: `pip install 'flowloom[aim]'`."""

    kind: Literal["aim"] = "aim"
    repo: str | None = None
    """FLOW's `aim_path`: folder or aim:// server; null: the run directory."""
    experiment: str | None = None
    """FLOW's `aim_experiment_name`; null: the run directory's name."""
    run_hash: str | None = None
    """FLOW's `aim_hash`: continue this Aim run; null: a new one."""
    images: bool = True
    """Show the previews as well."""

    def build(self, run_dir: Path, config: dict[str, Any]) -> Logger:
        try:
            with quiet_imports():
                import aim  # pyright: ignore[reportMissingImports] -- optional
        except ImportError as error:
            raise cannot_open("aim", error, "pip install 'flowloom[aim]'") from error
        hash_path = run_dir / "aim_run_hash"
        try:
            run: Any = aim.Run(  # pyright: ignore[reportAttributeAccessIssue, reportUnknownVariableType]
                run_hash=self.run_hash or remembered(hash_path),
                repo=self.repo or str(run_dir),
                experiment=printable(self.experiment or run_dir.name),
                system_tracking_interval=None,
                capture_terminal_logs=False,
            )
        except (OSError, RuntimeError, ValueError) as error:
            raise cannot_open("aim", error, "Check loggers.repo and loggers.run_hash.") from error
        remember(hash_path, run.hash)  # pyright: ignore[reportUnknownArgumentType]
        run["config"] = config
        return _AimLogger(self, run_dir, aim, run)


class _AimLogger:
    def __init__(self, spec: Aim, run_dir: Path, aim: Any, run: Any):
        self.spec = spec
        self.run_dir = run_dir
        self.aim = aim
        self.run = run

    def log(self, event: dict[str, Any]) -> None:
        step = event.get("step", 0) + self.spec.first_step
        try:
            for name, value in scalars(event).items():
                self.run.track(value, name=name, step=step, epoch=event.get("epoch"))
            for name, path, prompt in previews(self.run_dir, event) if self.spec.images else ():
                self.run.track(self.aim.Image(str(path), caption=prompt), name=name, step=step)
        except (OSError, RuntimeError, ValueError) as error:
            raise TrainingError(f"aim: {error}. The run continues without it.") from error

    def close(self) -> None:
        with suppress(OSError, RuntimeError, ValueError):
            self.run.close()
