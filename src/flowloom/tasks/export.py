"""Export a run's LoRA under the names of another program, or merge it into its base model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from flowloom.errors import Problem
from flowloom.model_library.requirements import unfit_adapter, unfit_base
from flowloom.models.family import detect
from flowloom.run.model_source import base_around, is_base_in_store, name_of, out_problems, source_problems
from flowloom.schema import Section
from flowloom.tasks.base import FunctionTask, Progress

Strength = Annotated[float, Field(allow_inf_nan=False)]


class ExportConfig(Section):
    """The LoRA to export and its format."""

    source_path: str
    """A run directory, one of its checkpoints, or a LoRA file."""
    form: Literal["comfy", "kohya", "diffusers"] = "comfy"
    """Naming of the tensors: ComfyUI, sd-scripts (kohya) or diffusers."""
    weights: Literal["ema", "raw"] = "ema"
    """For a run with EMA: the averaged weights (ema) or the trained ones (raw)."""
    base_path: str = ""
    """Base model; needed only to convert a DoRA to or from ComfyUI's format. Empty: the base of the run."""
    out_path: str = ""
    """The .safetensors file to write. Empty: the checkpoints of this run, where it can be downloaded."""


class MergeConfig(Section):
    """The LoRA to merge and its base model."""

    source_path: str
    """A run directory, one of its checkpoints, or a LoRA file."""
    base_path: str = ""
    """Base model. Empty: the one that the run was trained on."""
    strength: Strength = 1.0
    """Weight of the LoRA: 0 is the base model alone, 1 the LoRA as trained."""
    weights: Literal["ema", "raw"] = "ema"
    """For a run with EMA: the averaged weights (ema) or the trained ones (raw)."""
    out_path: str = ""
    """The .safetensors file to write. Empty: the checkpoints of this run, where it can be downloaded."""


def _export_problems(config: ExportConfig) -> list[Problem]:
    problems = [*_source_problems(config), *_format_problems(config), *out_problems(config.out_path)]
    return [*problems, *(_base_problems(Path(config.base_path)) if config.base_path else ())]


def _merge_problems(config: MergeConfig) -> list[Problem]:
    problems = [*_source_problems(config), *out_problems(config.out_path)]
    base = base_of(config)
    if base is None and is_base_in_store(Path(config.source_path)):
        return problems
    if base is None:
        return [
            *problems,
            Problem("base_path", "is needed: the base model of this LoRA is not recorded.", "missing"),
        ]
    return [*problems, *_base_problems(base)]


def _source_problems(config: ExportConfig | MergeConfig) -> Iterator[Problem]:
    yield from source_problems(config.source_path)
    path = Path(config.source_path)
    base = base_of(config)
    family = detect(base) if base and base.exists() else None
    if path.is_file() and (unfit := unfit_adapter(path, family)):
        yield Problem("source_path", unfit)


def _format_problems(config: ExportConfig) -> Iterator[Problem]:
    base = base_of(config)
    names = detect(base).names if base and base.exists() else None
    if names and config.form not in names.readers:
        yield Problem("form", names.without_reader(config.form))


def _base_problems(base: Path) -> Iterator[Problem]:
    if not base.exists():
        yield Problem("base_path", f"{base} does not exist.", "not-found")
    if base.exists() and (unfit := unfit_base(base)):
        yield Problem("base_path", unfit)


def base_of(config: MergeConfig | ExportConfig) -> Path | None:
    """The base model of the adapter; None if it is not recorded."""
    return Path(config.base_path) if config.base_path else base_around(Path(config.source_path))


def _export(config: ExportConfig, progress: Progress) -> None:
    """The result names the file and what was verified."""
    from flowloom.engine.export import export_adapter

    source = Path(config.source_path)
    out = _out_path(config.out_path, f"{name_of(source)}-{config.form}", progress)
    progress.phase("exporting")
    exported = export_adapter(source, config.form, out, config.weights, base_of(config))
    for note in exported.notes:
        progress.warn(note)
    _save_result(out, progress, verified=exported.verified.line)


def _merge(config: MergeConfig, progress: Progress) -> None:
    """The result names the file; a stop leaves no partial file."""
    from flowloom.engine.export import merge_adapter

    source = Path(config.source_path)
    out = _out_path(config.out_path, f"{name_of(source)}-merged", progress)

    def on_tensor(done: int, total: int) -> None:
        progress.step(done, total)
        progress.raise_if_stopped()

    progress.phase("merging")
    for note in merge_adapter(source, base_of(config), out, config.strength, config.weights, on_tensor):
        progress.warn(note)
    _save_result(out, progress)


def _out_path(wanted: str, name: str, progress: Progress) -> Path:
    out = Path(wanted) if wanted else progress.run_dir.path / "checkpoints" / f"{name}.safetensors"
    out.parent.mkdir(parents=True, exist_ok=True)
    return out


def _save_result(out: Path, progress: Progress, **more: str) -> None:
    progress.save_result({"path": str(out.absolute()), "size": out.stat().st_size} | more)


EXPORT = FunctionTask(
    name="export",
    title="Export a LoRA",
    config_type=ExportConfig,
    needs_device=False,
    find_problems=_export_problems,
    body=_export,
)
MERGE = FunctionTask(
    name="merge",
    title="Merge a LoRA",
    config_type=MergeConfig,
    needs_device=False,
    find_problems=_merge_problems,
    body=_merge,
)
