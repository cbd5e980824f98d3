"""Draw pictures with a run, a checkpoint or weights, over a grid of settings: the studio's playground."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from flowloom.config.flow_format.sections import Pixels
from flowloom.config.model_files import missing_model_files, resolve_paths
from flowloom.config.run import ModelSection, ParallelSection, RunConfig
from flowloom.errors import Problem
from flowloom.model_library.requirements import unfit_adapter, unfit_models
from flowloom.model_library.scan import look
from flowloom.run.model_source import config_around, source_problems
from flowloom.schema import Section
from flowloom.tasks.base import Task
from flowloom.tasks.export import Strength

MAX_PICTURES = 2000
SamplerName = Literal["euler", "heun", "midpoint", "dpmpp_2m"]
"""What one run draws at most: a grid grows by multiplication, unseen."""
Steps = Annotated[int, Field(ge=1)]
Scale = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class LoraSource(Section):
    """A LoRA on top of the network."""

    lora_path: str
    """Its file, of any naming."""
    strength: Strength = 1.0
    """0 is the base alone, 1 the LoRA as trained."""


class GridSection(Section):
    """Settings of which every combination is drawn, in place of the single ones; an empty list is none."""

    source_paths: Annotated[list[str], Field(max_length=100)] = []
    """Runs, checkpoints, weights or LoRAs; where the networks lie is told by source_path and model."""
    weights: list[Literal["ema", "raw"]] = []
    """Averages, weights themselves."""
    steps: list[Steps] = []
    """Sampler steps."""
    cfg: list[Scale] = []
    """Guidance scales."""
    samplers: list[SamplerName] = []
    """Samplers."""
    lora_strengths: list[Strength] = []
    """Factors on the strengths of all LoRAs, the source's own one included."""


class SampleConfig(Section):
    """What to draw, and with what."""

    source_path: str = ""
    """A run's folder, one of its checkpoints, weights or a LoRA; none: model.chroma_path."""
    model: ModelSection = ModelSection()
    """Where the networks lie; what is not given here is that of the source's run."""
    loras: Annotated[list[LoraSource], Field(max_length=20)] = []
    """LoRAs to load on top."""
    weights: Literal["ema", "raw"] = "ema"
    """Of a run with an EMA: the average, or the weights themselves."""
    prompts: Annotated[
        list[Annotated[str, Field(max_length=10_000)]], Field(min_length=1, max_length=MAX_PICTURES)
    ]
    """Each is drawn."""
    negative: Annotated[str, Field(max_length=10_000)] = ""
    """What guidance leads away from."""
    images_per_prompt: Annotated[int, Field(ge=1, le=MAX_PICTURES)] = 1
    """Pictures of each prompt, from seeds that count up."""
    seed: Annotated[int, Field(ge=0, lt=2**53)] = 0
    """Of the first picture of each prompt."""
    width: Pixels = 1024
    """In pixels, a multiple of 16."""
    height: Pixels = 1024
    """In pixels, a multiple of 16."""
    steps: Steps = 26
    """Sampler steps."""
    cfg: Scale = 4.0
    """Guidance by two passes; 1 is none."""
    guidance: Scale = 0.0
    """Distilled guidance fed to the network; Chroma is trained with 0."""
    first_n_steps_wo_cfg: Annotated[int, Field(ge=-1)] = 0
    """Steps without guidance at the start; -1 turns it off."""
    sampler: SamplerName = "euler"
    """The algorithm."""
    grid: GridSection = GridSection()
    """Further settings, of which every combination is drawn."""
    parallel: ParallelSection = ParallelSection()
    """Device and number format."""


@dataclass(frozen=True)
class Shot:
    """One picture to draw."""

    file: str
    source: str
    weights: Literal["ema", "raw"]
    prompt: str
    seed: int
    steps: int
    cfg: float
    sampler: str
    lora_strength: float


def shots(config: SampleConfig) -> Iterator[Shot]:
    """Every picture, in the order in which they are drawn and shown: sources, prompts, settings last."""
    grid = config.grid
    kinds: list[Literal["ema", "raw"]] = grid.weights or [config.weights]
    networks = product(grid.source_paths or [config.source_path], kinds)
    settings = product(
        config.prompts,
        range(config.images_per_prompt),
        grid.samplers or [config.sampler],
        grid.steps or [config.steps],
        grid.cfg or [config.cfg],
        grid.lora_strengths or [1.0],
    )
    for i, ((source, weights), setting) in enumerate(product(networks, settings)):
        prompt, number, sampler, steps, cfg, strength = setting
        seed = config.seed + number
        yield Shot(f"{i:04d}.png", source, weights, prompt, seed, steps, cfg, sampler, strength)


def run_config(config: SampleConfig) -> RunConfig:
    """What the engine loads: the source's own run, where it has one, with what is given over it."""
    source = next(filter(None, [config.source_path, *config.grid.source_paths]), "")
    around = config_around(Path(source)) if source else None
    model = (around or RunConfig()).model
    given = {
        key: value for key, value in config.model if key in config.model.model_fields_set and value != ""
    }
    model = resolve_paths(model.model_copy(update=given), Path())
    return (around or RunConfig()).model_copy(update={"model": model, "parallel": config.parallel})


def _look(config: SampleConfig) -> list[Problem]:
    problems = list(_source_problems(config))
    if not problems:
        model = run_config(config).model
        sources = config.grid.source_paths or [config.source_path]
        needs_base = any(not source or _is_adapter(Path(source)) for source in sources)
        skipped = () if needs_base else ("model.chroma_path",)
        found = [*missing_model_files(model), *unfit_models(model.model_dump())]
        problems += [problem for problem in found if problem.path not in skipped]
    problems += [problem for i, lora in enumerate(config.loras) for problem in _lora_problems(i, lora)]
    grid = config.grid
    count = len(config.prompts) * config.images_per_prompt
    for _, axis in grid:
        count *= len(axis) or 1
    if count > MAX_PICTURES:
        problems.append(Problem("grid", f"makes {count:,} pictures; {MAX_PICTURES:,} are the most."))
    return problems


def _source_problems(config: SampleConfig) -> Iterator[Problem]:
    if config.source_path:
        yield from source_problems(config.source_path)
    for i, source in enumerate(config.grid.source_paths):
        for problem in source_problems(source):
            yield Problem(f"grid.source_paths.{i}", problem.message)


def _is_adapter(source: Path) -> bool:
    if source.is_file():
        return look(source).kind == "lora"
    folder = source if source.name.startswith("step_") else source / "checkpoints"
    return any(folder.rglob("adapter*.safetensors"))


def _lora_problems(i: int, lora: LoraSource) -> Iterator[Problem]:
    path, place = Path(lora.lora_path), f"loras.{i}.lora_path"
    if not path.is_file():
        yield Problem(place, f"{path} is no file.")
        return
    unfit = unfit_adapter(path)
    if unfit:
        yield Problem(place, unfit)


TASK = Task(
    name="sample",
    title="Draw pictures",
    config_type=SampleConfig,
    work="flowloom.tasks.sample_run:sample_in_a_run",
    look=_look,
)
