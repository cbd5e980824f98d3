"""Trainers: the same routes for each."""

from __future__ import annotations

from typing import Any

from fastapi import status
from pydantic import BaseModel, ConfigDict, Field

from flowloom.run.task import Command
from flowloom.server.deps import QueueDep, RunsDep, StudioDep, TrainerDep
from flowloom.server.off_loop import Router, in_group
from flowloom.server.problems import (
    FieldProblem,
    Invalid,
    NameTaken,
    NoSuchRun,
    NoSuchTrainer,
    NotNow,
    problems,
    shows,
)
from flowloom.server.runs.create import NewRun, make_run, problems_of
from flowloom.server.runs.preview import preview, shell_line
from flowloom.server.runs.view import RunName, RunView
from flowloom.trainers.base import SourceKind

router = Router(tags=["training"], responses=problems(NoSuchTrainer))
_MODELS = shows({"model.chroma_path": ["models/chroma.safetensors"]})


class TrainerView(BaseModel):
    """A trainer."""

    name: str = Field(examples=["flow"])
    title: str
    supported_controls: list[str] = Field(
        description="Controls that its runs support while running.", examples=[["stop", "sample"]]
    )
    has_preflight: bool = Field(
        description="True if it supports POST /api/{trainer}/preflight.", examples=[True]
    )


class SourceView(BaseModel):
    """The origin of some of a preset's values."""

    kind: SourceKind = Field(examples=["documentation"])
    text: str = Field(examples=["Rank and rate: the example of sd-scripts' docs/flux_train_network.md."])


class PresetView(BaseModel):
    """A configuration to start from."""

    name: str
    title: str
    note: str
    config: dict[str, Any]
    sources: list[SourceView]


class ConfigView(BaseModel):
    """Schema, defaults and presets of a trainer's configuration."""

    schema_: dict[str, Any] = Field(serialization_alias="schema", description="JSON schema.")
    defaults: dict[str, Any] = Field(examples=[{"limits": {"max_steps": None}}])
    presets: list[PresetView]


class ConfigRequest(BaseModel):
    """A configuration to check."""

    model_config = ConfigDict(extra="forbid")

    config: dict[str, Any] = Field(examples=[{"training": {"lr": 1e-4}}])


class ConfigVerdict(BaseModel):
    """The result of checking a configuration."""

    is_valid: bool
    problems: list[FieldProblem]


class ConfigPreviewRequest(ConfigRequest):
    """A configuration to preview."""

    name: RunName | None = Field(
        None,
        description="Name of the run directory in the shown paths.",
        examples=["fox-lora"],
    )


class FileView(BaseModel):
    """A file of a run's directory."""

    name: str = Field(examples=["config.toml"])
    text: str


class CommandView(BaseModel):
    """The command of a run."""

    line: str = Field(description="Ready to paste into a shell.", examples=["cd sd-scripts && python ..."])
    argv: list[str]
    environment: dict[str, str] = Field(description="Added to the studio's environment.")
    folder: str | None = Field(description="Working directory; null: any.")


class ConfigPreview(ConfigVerdict):
    """Files and command of a run with a configuration."""

    files: list[FileView] = Field(description="Empty if the configuration is invalid.")
    command: CommandView | None = Field(description="Null if the trainer's code is not on this machine.")


class TrainerRuns(BaseModel):
    """The running and queued runs of a trainer."""

    running: list[RunView]
    queued: list[RunView]


class StopTrainingRequest(BaseModel):
    """The run to stop."""

    model_config = ConfigDict(extra="forbid")

    run: str | None = Field(None, description="Default: the only running one.", examples=["fox-lora"])


@router.get("/trainers", summary="List trainers")
def list_trainers(studio: StudioDep) -> list[TrainerView]:
    """The routes below exist for each name."""
    return [
        TrainerView(
            name=trainer.name,
            title=trainer.title,
            supported_controls=sorted(trainer.supported_controls),
            has_preflight=bool(trainer.preflight_command),
        )
        for trainer in studio.trainers.values()
    ]


@router.get("/{trainer}/config", summary="Schema, defaults, presets")
def read_trainer_config(trainer: TrainerDep) -> ConfigView:
    """For a form."""
    presets = [PresetView.model_validate(preset, from_attributes=True) for preset in trainer.presets()]
    return ConfigView(schema_=trainer.schema(), defaults=trainer.defaults(), presets=presets)


@router.post("/{trainer}/config", summary="Check a configuration")
def check_config(trainer: TrainerDep, body: ConfigRequest, studio: StudioDep) -> ConfigVerdict:
    """Every problem, each with its JSON pointer."""
    found = Invalid.of(problems_of(studio, trainer, body.config))
    return ConfigVerdict(is_valid=not found.errors, problems=found.errors)


@router.post("/{trainer}/config/preview", summary="Show the files and the command of a configuration")
def preview_config(trainer: TrainerDep, body: ConfigPreviewRequest, studio: StudioDep) -> ConfigPreview:
    """The files and command of a run. Started by hand, the command does the same. Nothing is kept.

    Problems of the configuration are listed in the response.
    """
    found = Invalid.of(problems_of(studio, trainer, body.config))
    is_within = not any(studio.roots.path_problems(body.config))
    path = studio.runs.runs_dir.absolute() / (body.name or "new-run")
    files, command = preview(trainer, body.config, path) if is_within else ({}, None)
    return ConfigPreview(
        is_valid=not found.errors,
        problems=found.errors,
        files=[FileView(name=name, text=text) for name, text in files.items()],
        command=command and _shown(command),
    )


@router.post(
    "/{trainer}/train/start",
    summary="Queue a run",
    status_code=status.HTTP_201_CREATED,
    responses=problems(NameTaken),
)
def start_training(trainer: TrainerDep, body: NewRun, studio: StudioDep) -> RunView:
    """The run starts when its devices are free. Follow it at `/api/runs/{id}/events`."""
    return make_run(studio, trainer, body)


def _shown(command: Command) -> CommandView:
    return CommandView(
        line=shell_line(command),
        argv=command.argv,
        environment=command.env,
        folder=str(command.cwd) if command.cwd else None,
    )


@router.post("/{trainer}/train/stop", summary="Save and stop", responses=problems(NoSuchRun, NotNow))
def stop_training(trainer: TrainerDep, body: StopTrainingRequest, queue: QueueDep) -> RunView:
    """Stop the named run, or the only running one."""
    if body.run is not None:
        return queue.stop(body.run, save=True)
    running = [run.id for run in queue.runs.store.with_states("running") if run.trainer == trainer.name]
    if len(running) != 1:
        which = f"{len(running)} runs of {trainer.title} are running."
        raise NotNow(which, f"Name one: {', '.join(running)}." if running else "There is nothing to stop.")
    return queue.stop(running[0], save=True)


@router.get("/{trainer}/train/status", summary="List running and queued runs")
def read_training(trainer: TrainerDep, registry: RunsDep) -> TrainerRuns:
    """Of this trainer."""
    store = registry.store
    running = [run for run in store.with_states("running", "stopping") if run.trainer == trainer.name]
    return TrainerRuns(running=running, queued=[run for run in store.queue() if run.trainer == trainer.name])


@router.get("/{trainer}/models", summary="List model files to choose from", responses=_MODELS)
@in_group("computing")
def list_models(trainer: TrainerDep, studio: StudioDep) -> dict[str, list[str]]:
    """Matching files in the studio's folders for each path of the configuration."""
    found = trainer.models([path for path in studio.roots.folders.values() if path.is_dir()])
    return {key: [str(path) for path in paths] for key, paths in found.items()}
