"""Export a run's LoRA by the names of another program, or merge it into its base."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from flowloom.errors import Problem
from flowloom.model_library.requirements import unfit_adapter, unfit_models
from flowloom.run.model_source import base_around, out_problems, source_problems
from flowloom.schema import Section
from flowloom.tasks.base import Task

Strength = Annotated[float, Field(allow_inf_nan=False)]


class ExportConfig(Section):
    """Which LoRA to write, and how."""

    source_path: str
    """A run's folder, one of its checkpoints, or a LoRA's file."""
    form: Literal["comfy", "kohya", "diffusers"] = "comfy"
    """Whose names the file has: ComfyUI's, sd-scripts', or diffusers'."""
    weights: Literal["ema", "raw"] = "ema"
    """Of a run with an EMA: the average, or the weights themselves."""
    base_path: str = ""
    """The base model, which only a DoRA needs, between ComfyUI and the others; none: the run's own."""
    out_path: str = ""
    """The .safetensors file to write; none: it lies among this run's checkpoints, to be downloaded."""


class MergeConfig(Section):
    """Which LoRA to merge into what."""

    source_path: str
    """A run's folder, one of its checkpoints, or a LoRA's file."""
    base_path: str = ""
    """The base model; none: the one that the run was trained on."""
    strength: Strength = 1.0
    """0 is the base alone, 1 the adapter as trained."""
    weights: Literal["ema", "raw"] = "ema"
    """Of a run with an EMA: the average, or the weights themselves."""
    out_path: str = ""
    """The .safetensors file to write; none: it lies among this run's checkpoints, to be downloaded."""


def _look_at_export(config: ExportConfig) -> list[Problem]:
    problems = [*_source_problems(config), *out_problems(config.out_path)]
    return [*problems, *(_base_problems(Path(config.base_path)) if config.base_path else ())]


def _look_at_merge(config: MergeConfig) -> list[Problem]:
    problems = [*_source_problems(config), *out_problems(config.out_path)]
    base = base_of(config)
    if base is None:
        return [*problems, Problem("base_path", "is needed: nothing says what this LoRA was trained on.")]
    return [*problems, *_base_problems(base)]


def _source_problems(config: ExportConfig | MergeConfig) -> Iterator[Problem]:
    yield from source_problems(config.source_path)
    path = Path(config.source_path)
    if path.is_file() and (unfit := unfit_adapter(path)):
        yield Problem("source_path", unfit)


def _base_problems(base: Path) -> Iterator[Problem]:
    if not base.exists():
        yield Problem("base_path", f"{base} does not exist.")
    for unfit in unfit_models({"chroma_path": str(base)}):
        yield Problem("base_path", unfit.message)


def base_of(config: MergeConfig | ExportConfig) -> Path | None:
    """The model that the adapter is for; None where nothing says which."""
    return Path(config.base_path) if config.base_path else base_around(Path(config.source_path))


EXPORT = Task(
    name="export",
    title="Export a LoRA",
    config_type=ExportConfig,
    work="flowloom.tasks.export_run:export_in_a_run",
    needs_device=False,
    look=_look_at_export,
)
MERGE = Task(
    name="merge",
    title="Merge a LoRA",
    config_type=MergeConfig,
    work="flowloom.tasks.export_run:merge_in_a_run",
    needs_device=False,
    look=_look_at_merge,
)
