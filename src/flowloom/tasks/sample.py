"""Generate images from a run, a checkpoint or weights, over a grid of settings: the studio's playground."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby, product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from flowloom.config.device_sections import ParallelSection
from flowloom.config.flow_format.sections import InferenceSection, Period, Pixels
from flowloom.config.model_files import missing_model_files, resolve_paths
from flowloom.config.run import ModelSection, RunConfig
from flowloom.errors import Problem
from flowloom.files import write_json
from flowloom.model_library.requirements import unfit_adapter, unfit_models
from flowloom.model_library.scan import look
from flowloom.models.family import family_for
from flowloom.run.model_source import config_around, source_problems
from flowloom.schema import Section
from flowloom.tasks.base import FunctionTask, Progress
from flowloom.tasks.export import Strength

if TYPE_CHECKING:
    from flowloom.engine.preview import SamplingParams
    from flowloom.engine.sample import SampleRequest

MAX_IMAGES = 2000
"""Limit of one run, because the size of a grid is the product of its axes."""
SamplerName = Literal["euler", "heun", "midpoint", "dpmpp_2m"]
Steps = Annotated[int, Field(ge=1)]
Scale = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class LoraSource(Section):
    """A LoRA applied to the network."""

    lora_path: str
    """The LoRA file, with any naming of tensors."""
    strength: Strength = 1.0
    """Weight of the LoRA: 0 is the base model alone, 1 the LoRA as trained."""


class GridSection(Section):
    """Lists of settings; every combination is generated. An empty list uses the single setting."""

    source_paths: Annotated[list[str], Field(max_length=100)] = []
    """Runs, checkpoints, weights or LoRAs. The other model files come from source_path and model."""
    weights: list[Literal["ema", "raw"]] = []
    """EMA weights, raw weights."""
    steps: list[Steps] = []
    """Sampler steps."""
    cfg: list[Scale] = []
    """Guidance scales."""
    samplers: list[SamplerName] = []
    """Samplers."""
    lora_strengths: list[Strength] = []
    """Factors applied to the strength of every LoRA, including the source's own."""


class SampleConfig(Section, title="Images"):
    """Prompts, model and settings of the images to generate."""

    source_path: str = ""
    """A run directory, one of its checkpoints, weights or a LoRA. Empty: the network that `model` names."""
    model: ModelSection = ModelSection()
    """Paths of the model files. Empty ones come from the source's run."""
    loras: Annotated[list[LoraSource], Field(max_length=20)] = []
    """LoRAs to apply."""
    weights: Literal["ema", "raw"] = "ema"
    """For a run with EMA: the averaged weights (ema) or the trained ones (raw)."""
    prompts: Annotated[
        list[Annotated[str, Field(max_length=10_000)]], Field(min_length=1, max_length=MAX_IMAGES)
    ]
    """The prompts."""
    negative: Annotated[str, Field(max_length=10_000)] = ""
    """Negative prompt."""
    images_per_prompt: Annotated[int, Field(ge=1, le=MAX_IMAGES)] = 1
    """Images per prompt, with consecutive seeds."""
    seed: Annotated[int, Field(ge=0, lt=2**53)] = 0
    """Seed of the first image of each prompt."""
    width: Pixels = 1024
    """Width in pixels, a multiple of 16."""
    height: Pixels = 1024
    """Height in pixels, a multiple of 16."""
    steps: Steps = 26
    """Sampler steps."""
    cfg: Scale = 4.0
    """Classifier-free guidance scale; 1 turns it off and halves the time."""
    guidance: Scale = 0.0
    """Distilled guidance, an input of the network. Chroma was trained with 0."""
    first_n_steps_wo_cfg: Annotated[int, Field(ge=-1)] = 0
    """Number of first steps without classifier-free guidance; -1 for none."""
    sampler: SamplerName = "euler"
    """Sampling method."""
    num_frames: Period | None = None
    """Frames of a clip, 4n + 1 for Wan; 1: an image; empty: as in training. Models of images ignore it."""
    fps: Annotated[float, Field(gt=0, le=1000)] | None = None
    """Frame rate of a clip; empty: that of the training clips."""
    grid: GridSection = GridSection()
    """Lists of settings for an XY grid."""
    parallel: ParallelSection = ParallelSection()
    """Device and data type used for sampling."""


@dataclass(frozen=True)
class Shot:
    """One image to generate."""

    stem: str
    """Name of its file without a suffix."""
    source: str
    weights: Literal["ema", "raw"]
    prompt: str
    seed: int
    steps: int
    cfg: float
    sampler: str
    lora_strength: float


def shots(config: SampleConfig) -> Iterator[Shot]:
    """Every image in the order of generation: by source, prompt, then settings."""
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
        yield Shot(f"{i:04d}", source, weights, prompt, seed, steps, cfg, sampler, strength)


def run_config(config: SampleConfig) -> RunConfig:
    """The configuration that the engine loads: that of the source's run, overridden by `config`."""
    source = next(filter(None, [config.source_path, *config.grid.source_paths]), "")
    around = config_around(Path(source)) if source else None
    model = (around or RunConfig()).model
    overrides = {
        key: value for key, value in config.model if key in config.model.model_fields_set and value != ""
    }
    model = resolve_paths(model.model_copy(update=overrides), Path())
    return (around or RunConfig()).model_copy(update={"model": model, "parallel": config.parallel})


def _find_problems(config: SampleConfig) -> list[Problem]:
    problems = list(_source_problems(config))
    if not problems:
        model = run_config(config).model
        sources = config.grid.source_paths or [config.source_path]
        needs_base = any(not source or _is_adapter(Path(source)) for source in sources)
        skipped = () if needs_base else ("model.chroma_path", "model.path")
        unfit = [*missing_model_files(model), *unfit_models(model.model_dump())]
        problems += [problem for problem in unfit if problem.where not in skipped]
    problems += [
        problem for i, lora in enumerate(config.loras) for problem in _lora_problems(config, i, lora)
    ]
    grid = config.grid
    count = len(config.prompts) * config.images_per_prompt
    for _, axis in grid:
        count *= len(axis) or 1
    if count > MAX_IMAGES:
        problems.append(Problem("grid", f"makes {count:,} images; the limit is {MAX_IMAGES:,}."))
    return problems


def _source_problems(config: SampleConfig) -> Iterator[Problem]:
    if config.source_path:
        yield from source_problems(config.source_path)
    for i, source in enumerate(config.grid.source_paths):
        for problem in source_problems(source):
            yield replace(problem, where=f"grid.source_paths.{i}")


def _is_adapter(source: Path) -> bool:
    if source.is_file():
        return look(source).kind == "lora"
    folder = source if source.name.startswith("step_") else source / "checkpoints"
    return any(folder.rglob("adapter*.safetensors"))


def _lora_problems(config: SampleConfig, i: int, lora: LoraSource) -> Iterator[Problem]:
    path, place = Path(lora.lora_path), f"loras.{i}.lora_path"
    if not path.is_file():
        yield Problem(place, f"{path} is not a file.")
        return
    unfit = unfit_adapter(path, family_for(run_config(config).model))
    if unfit:
        yield Problem(place, unfit)


def _sample(config: SampleConfig, progress: Progress) -> None:
    """Every image is saved as a preview of step 0 as soon as it is generated."""
    from flowloom.engine.clips import save_generated
    from flowloom.engine.preview import record_of
    from flowloom.engine.sample import load_with_adapters

    folder = progress.run_dir.samples_dir(0)
    folder.mkdir(parents=True, exist_ok=True)
    records = _existing_records(folder)
    planned = list(shots(config))
    done = {Path(record["file"]).stem for record in records}
    pending = [shot for shot in planned if shot.stem not in done]
    if not pending:
        return
    noted: set[str] = set()
    progress.phase("sampling")
    progress.step(len(records), len(planned))
    for (source, weights), group in groupby(pending, key=lambda shot: (shot.source, shot.weights)):
        sample_generator, adapters = load_with_adapters(_request(config, folder, source, weights))
        for note in [note for adapter, _ in adapters for note in adapter.metadata["notes"]]:
            if note not in noted:  # the same LoRA is applied to every source
                progress.warn(note)
                noted.add(note)
        for shot in group:
            progress.raise_if_stopped()
            for adapter, strength in adapters:
                adapter.set_strength(strength * shot.lora_strength)
            params = _sampling_params(config, shot)
            (made,) = sample_generator.generate([shot.prompt], [shot.seed], params)
            files = save_generated(made, folder, shot.stem, "png", "mp4")
            records.append(files | _record(config, shot) | record_of(params) | _with_loras(config, shot))
            write_json(folder / "samples.json", records)
            progress.emit("sampled", step=0, dir=f"samples/{folder.name}")
            progress.step(len(records), len(planned))
        # Free the memory before the next source's networks are loaded.
        del sample_generator, adapters
    progress.save_result({"num_images": len(records)})


def _request(
    config: SampleConfig, folder: Path, source: str, weights: Literal["ema", "raw"]
) -> SampleRequest:
    from flowloom.engine.sample import SampleRequest

    loaded = run_config(config)
    loras = [(Path(lora.lora_path), lora.strength) for lora in config.loras]
    return SampleRequest(
        source=Path(source) if source else loaded.model.network_path,
        prompts=config.prompts,
        out_dir=folder,
        params=_sampling_params(config, next(shots(config))),
        config=loaded,
        loras=loras,
        weights=weights,
    )


def _record(config: SampleConfig, shot: Shot) -> dict[str, Any]:
    source = shot.source or str(run_config(config).model.network_path)
    record = {"prompt": shot.prompt, "seed": shot.seed, "source": source}
    return record | ({"weights": shot.weights} if config.grid.weights else {})


def _existing_records(folder: Path) -> list[dict[str, Any]]:
    """Records of the images that an earlier process generated."""
    try:
        records = json.loads((folder / "samples.json").read_text())
    except FileNotFoundError:
        return []
    return [record for record in records if (folder / record["file"]).is_file()]


def _sampling_params(config: SampleConfig, shot: Shot) -> SamplingParams:
    from flowloom.engine.preview import SamplingParams, clip_size

    asked = InferenceSection(num_frames=config.num_frames, fps=config.fps)
    num_frames, fps = clip_size(asked, run_config(config))
    return SamplingParams(
        config.width,
        config.height,
        steps=shot.steps,
        cfg=shot.cfg,
        guidance=config.guidance,
        first_n_steps_wo_cfg=config.first_n_steps_wo_cfg,
        sampler=shot.sampler,
        negative=config.negative,
        num_frames=num_frames,
        fps=fps,
    )


def _with_loras(config: SampleConfig, shot: Shot) -> dict[str, Any]:
    if not config.loras and not config.grid.lora_strengths:
        return {}
    loras = [
        {"path": lora.lora_path, "strength": lora.strength * shot.lora_strength} for lora in config.loras
    ]
    return {"loras": loras, "lora_strength": shot.lora_strength}


SAMPLE = FunctionTask(
    name="sample",
    title="Generate images",
    config_type=SampleConfig,
    find_problems=_find_problems,
    body=_sample,
)
