"""Model sources of tasks: a run, one of its checkpoints, or a file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from flowloom.config.run import RunConfig
from flowloom.errors import FlowloomError, Problem
from flowloom.run.directory import RunDir
from flowloom.storage.local_copy import is_url


def config_around(source: Path) -> RunConfig | None:
    """The configuration of our engine's run that contains `source`; None if there is none."""
    run_dir = RunDir.around(source)
    if run_dir is None:
        return None
    try:
        is_ours = run_dir.read_run().get("trainer", "flow") in ("flow", "demo")
        return run_dir.read_config() if is_ours else None
    except FlowloomError:
        return None


def base_around(source: Path) -> Path | None:
    """The base model of our engine's run that contains `source`; None if there is none on this machine."""
    config = config_around(source)
    return config.model.network_path if config and not is_base_in_store(source) else None


def is_base_in_store(source: Path) -> bool:
    """True if the base model of the run that contains `source` is named by URL."""
    config = config_around(source)
    return bool(config) and is_url(config.model.path or config.model.chroma_path)


def name_of(source: Path) -> str:
    """Stem for names of files made from `source`: the run and the checkpoint, or the file."""
    run_dir = RunDir.around(source)
    steps = [part for part in source.parts if part.startswith("step_")]
    if run_dir is None:
        return source.stem
    if not steps and (newest := run_dir.latest_checkpoint()):
        steps = [newest.name]
    return "-".join([run_dir.path.name, *steps[-1:]])


def source_problems(source: str) -> Iterator[Problem]:
    """Problems with the path of a source."""
    path = Path(source)
    if not path.exists():
        yield Problem("source_path", f"{source} does not exist.", "not-found")
    elif path.is_dir() and not path.name.startswith("step_") and not (path / "run.json").is_file():
        yield Problem("source_path", f"{source} is neither a run directory nor a checkpoint.")


def out_problems(out: str) -> Iterator[Problem]:
    """Problems with the path of an output file; an empty one is valid."""
    path = Path(out)
    if out and path.suffix != ".safetensors":
        yield Problem("out_path", "must end in .safetensors.")
    elif out and path.exists():
        yield Problem("out_path", f"{out} exists already. Choose another name, or delete it.")
