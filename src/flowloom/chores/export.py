"""Export a run's LoRA by the names of another program, or merge it into its base."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from flowloom.chores.base import Chore
from flowloom.chores.sources import base_around, out_problems, source_problems
from flowloom.data.library.look import look
from flowloom.errors import Problem
from flowloom.parts.base import Section

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
    return [*source_problems(config.source_path), *out_problems(config.out_path)]


def _look_at_merge(config: MergeConfig) -> list[Problem]:
    problems = [*source_problems(config.source_path), *out_problems(config.out_path)]
    base = base_of(config)
    if base is None:
        problems.append(Problem("base_path", "is needed: nothing says what this LoRA was trained on."))
    elif not base.exists():
        problems.append(Problem("base_path", f"{base} does not exist."))
    elif (found := look(base)).architecture not in (None, "chroma"):
        problems.append(Problem("base_path", f"{base.name} is {found.words}: Chroma's network goes here."))
    return problems


def base_of(config: MergeConfig | ExportConfig) -> Path | None:
    """The model that the adapter is for; None where nothing says which."""
    return Path(config.base_path) if config.base_path else base_around(Path(config.source_path))


EXPORT = Chore(
    name="export",
    title="Export a LoRA",
    config_type=ExportConfig,
    work="flowloom.engine.export_run:export_in_a_run",
    needs_device=False,
    look=_look_at_export,
)
MERGE = Chore(
    name="merge",
    title="Merge a LoRA",
    config_type=MergeConfig,
    work="flowloom.engine.export_run:merge_in_a_run",
    needs_device=False,
    look=_look_at_merge,
)
