"""The run directory that `train` and `launch` start from a configuration."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from flowloom.config.flow_format.read import LoadedConfig
from flowloom.config.remote_models import with_model_headers
from flowloom.model_library.requirements import refuse_unfit_models
from flowloom.run.directory import RunDir, default_name


def new_run(loaded: LoadedConfig, name: str | None, runs_dir: Path) -> RunDir:
    """Create the run directory of a configuration whose models fit, and print its notes."""
    refuse_unfit_models(with_model_headers(loaded.config), loaded.source)
    print_notes(loaded.notes)
    run_dir = RunDir.create(name or default_name(loaded.source.stem), runs_dir)
    run_dir.write_run(loaded.config, str(loaded.source), loaded.notes)
    return run_dir


def print_notes(notes: Iterable[str]) -> None:
    """Print what a user should know of a configuration."""
    for note in notes:
        print(f"note       {note}", file=sys.stderr)
