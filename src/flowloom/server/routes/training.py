"""Trainers: the same routes for each."""

from __future__ import annotations

from typing import Any

from fastapi import status
from pydantic import BaseModel, ConfigDict, Field

from flowloom.run.task import Command
from flowloom.server.deps import QueueDep, RunsDep, StudioDep, TrainerDep
from flowloom.server.off_loop import Router, in_group
from flowloom.server.problems import (
    Invalid,
    NameTaken,
    NoSuchRun,
    NoSuchTrainer,
    NotNow,
    Place,
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
        description="Requests that its runs obey.", examples=[["stop", "sample"]]
    )
    has_preflight: bool = Field(description="Whether POST /api/NAME/preflight answers.", examples=[True])


class SourceView(BaseModel):
    """Where some of a preset's values come from."""

    kind: SourceKind = Field(examples=["documentation"])
    text: str = Field(examples=["Rank and rate: the example of sd-scripts' docs/flux_train_network.md."])


class PresetView(BaseModel):
    """A configuration to begin with."""

    name: str
    title: str
    note: str
    config: dict[str, Any]
    sources: list[SourceView]


class ConfigView(BaseModel):
    """What a trainer's configuration is made of."""

    schema_: dict[str, Any] = Field(serialization_alias="schema", description="JSON schema.")
    defaults: dict[str, Any] = Field(examples=[{"limits": {"max_steps": None}}])
    presets: list[PresetView]


class Candidate(BaseModel):
    """A configuration to be checked."""

    model_config = ConfigDict(extra="forbid")

    config: dict[str, Any] = Field(examples=[{"training": {"lr": 1e-4}}])


class ConfigVerdict(BaseModel):
    """Whether a configuration can run."""

    is_valid: bool
    problems: list[Place]


class Draft(Candidate):
    """A run that may be made."""

    name: RunName | None = Field(
        None,
        description="Of its directory, as the paths below show it.",
        examples=["fox-lora"],
    )


class FileView(BaseModel):
    """A file of a run's directory."""

    name: str = Field(examples=["config.toml"])
    text: str


class CommandView(BaseModel):
    """What a run starts."""

    line: str = Field(description="As one types it in a shell.", examples=["cd sd-scripts && python ..."])
    argv: list[str]
    environment: dict[str, str] = Field(description="Beside the studio's own.")
    folder: str | None = Field(description="Where it starts; none: anywhere.")


class ConfigPreview(ConfigVerdict):
    """What a configuration would become."""

    files: list[FileView] = Field(description="None where it cannot be read.")
    command: CommandView | None = Field(description="None where the trainer's code is not on this machine.")


class Status(BaseModel):
    """A trainer's runs that are not over."""

    running: list[RunView]
    queued: list[RunView]


class Stop(BaseModel):
    """Which run to stop."""

    model_config = ConfigDict(extra="forbid")

    run: str | None = Field(None, description="None: the one that runs.", examples=["fox-lora"])


@router.get("/trainers", summary="List trainers")
def list_trainers(studio: StudioDep) -> list[TrainerView]:
    """Each has the routes below under its name."""
    return [
        TrainerView(
            name=one.name,
            title=one.title,
            supported_controls=sorted(one.supported_controls),
            has_preflight=bool(one.preflight_command),
        )
        for one in studio.trainers.values()
    ]


@router.get("/{trainer}/config", summary="Schema, defaults, presets")
def read_trainer_config(trainer: TrainerDep) -> ConfigView:
    """All that a form needs."""
    presets = [PresetView.model_validate(preset, from_attributes=True) for preset in trainer.presets()]
    return ConfigView(schema_=trainer.schema(), defaults=trainer.defaults(), presets=presets)


@router.post("/{trainer}/config", summary="Check a configuration")
def check_config(trainer: TrainerDep, body: Candidate, studio: StudioDep) -> ConfigVerdict:
    """Every problem at once, each with its JSON pointer."""
    found = Invalid.of(problems_of(studio, trainer, body.config))
    return ConfigVerdict(is_valid=not found.errors, problems=found.errors)


@router.post("/{trainer}/config/preview", summary="Show the files and the command of a configuration")
def preview_config(trainer: TrainerDep, body: Draft, studio: StudioDep) -> ConfigPreview:
    """What its run would hold and start: by hand, the same command does the same. Nothing is kept.

    What is wrong with it is told beside that, and is no error here.
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
    """It starts as soon as its devices are free; follow it at `/api/runs/{id}/events`."""
    return make_run(studio, trainer, body)


def _shown(command: Command) -> CommandView:
    return CommandView(
        line=shell_line(command),
        argv=command.argv,
        environment=command.env,
        folder=str(command.cwd) if command.cwd else None,
    )


@router.post("/{trainer}/train/stop", summary="Save and stop", responses=problems(NoSuchRun, NotNow))
def stop_training(trainer: TrainerDep, body: Stop, queue: QueueDep) -> RunView:
    """The run that is named, or the only one that runs."""
    if body.run is not None:
        return queue.stop(body.run, save=True)
    running = [run.id for run in queue.runs.store.with_states("running") if run.trainer == trainer.name]
    if len(running) != 1:
        which = f"{len(running)} runs of {trainer.title} are running."
        raise NotNow(which, f"Name one: {', '.join(running)}." if running else "There is nothing to stop.")
    return queue.stop(running[0], save=True)


@router.get("/{trainer}/train/status", summary="What runs and waits")
def read_training(trainer: TrainerDep, registry: RunsDep) -> Status:
    """This trainer's runs."""
    store = registry.store
    running = [run for run in store.with_states("running", "stopping") if run.trainer == trainer.name]
    return Status(running=running, queued=[run for run in store.queue() if run.trainer == trainer.name])


@router.get("/{trainer}/models", summary="Files to choose from", responses=_MODELS)
@in_group("computing")
def list_models(trainer: TrainerDep, studio: StudioDep) -> dict[str, list[str]]:
    """For each path of the configuration, what lies in the studio's folders and fits."""
    found = trainer.models([path for path in studio.roots.folders.values() if path.is_dir()])
    return {key: [str(path) for path in paths] for key, paths in found.items()}
