"""Trainers: the same routes for each."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, status
from pydantic import BaseModel, Field

from flowloom.server.deps import QueueDep, ShelfDep, StudioDep, TrainerDep
from flowloom.server.making import NewRun, make_run, problems_of
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
from flowloom.server.runs import RunView

router = APIRouter(tags=["training"], responses=problems(NoSuchTrainer))
_MODELS = shows({"model.chroma_path": ["models/chroma.safetensors"]})


class TrainerView(BaseModel):
    """A trainer."""

    name: str = Field(examples=["flow"])
    title: str
    abilities: list[str] = Field(
        description="What a run of it can be asked for.", examples=[["stop", "sample"]]
    )


class PresetView(BaseModel):
    """A configuration to begin with."""

    name: str
    title: str
    note: str
    config: dict[str, Any]


class ConfigView(BaseModel):
    """What a trainer's configuration is made of."""

    schema_: dict[str, Any] = Field(serialization_alias="schema", description="JSON schema.")
    defaults: dict[str, Any] = Field(examples=[{"limits": {"max_steps": None}}])
    presets: list[PresetView]


class Candidate(BaseModel):
    """A configuration to be checked."""

    config: dict[str, Any] = Field(examples=[{"training": {"lr": 1e-4}}])


class Verdict(BaseModel):
    """Whether a configuration can run."""

    is_valid: bool
    problems: list[Place]


class Status(BaseModel):
    """A trainer's runs that are not over."""

    running: list[RunView]
    queued: list[RunView]


class Stop(BaseModel):
    """Which run to stop."""

    run: str | None = Field(None, description="None: the one that runs.", examples=["fox-lora"])


@router.get("/trainers", summary="List trainers")
async def list_trainers(studio: StudioDep) -> list[TrainerView]:
    """Each has the routes below under its name."""
    found = studio.trainers.values()
    return [TrainerView(name=one.name, title=one.title, abilities=sorted(one.abilities)) for one in found]


@router.get("/{trainer}/config", summary="Schema, defaults, presets")
def read_trainer_config(trainer: TrainerDep) -> ConfigView:
    """All that a form needs."""
    presets = [PresetView.model_validate(preset, from_attributes=True) for preset in trainer.presets()]
    return ConfigView(schema_=trainer.schema(), defaults=trainer.defaults(), presets=presets)


@router.post("/{trainer}/config", summary="Check a configuration")
def check_config(trainer: TrainerDep, body: Candidate, studio: StudioDep) -> Verdict:
    """Every problem at once, each with its JSON pointer."""
    found = Invalid.of(problems_of(studio, trainer, body.config))
    return Verdict(is_valid=not found.errors, problems=found.errors)


@router.post(
    "/{trainer}/train/start",
    summary="Queue a run",
    status_code=status.HTTP_201_CREATED,
    responses=problems(NameTaken),
)
def start_training(trainer: TrainerDep, body: NewRun, studio: StudioDep) -> RunView:
    """It starts as soon as its devices are free; follow it at `/api/runs/{id}/events`."""
    return make_run(studio, trainer, body)


@router.post("/{trainer}/train/stop", summary="Save and stop", responses=problems(NoSuchRun, NotNow))
def stop_training(trainer: TrainerDep, body: Stop, queue: QueueDep) -> RunView:
    """The run that is named, or the only one that runs."""
    if body.run is not None:
        return queue.stop(body.run, save=True)
    running = [run.id for run in queue.shelf.store.with_states("running") if run.trainer == trainer.name]
    if len(running) != 1:
        which = f"{len(running)} runs of {trainer.title} are running."
        raise NotNow(which, f"Name one: {', '.join(running)}." if running else "There is nothing to stop.")
    return queue.stop(running[0], save=True)


@router.get("/{trainer}/train/status", summary="What runs and waits")
async def read_training(trainer: TrainerDep, shelf: ShelfDep) -> Status:
    """This trainer's runs."""
    store = shelf.store
    running = [run for run in store.with_states("running", "stopping") if run.trainer == trainer.name]
    return Status(running=running, queued=[run for run in store.queue() if run.trainer == trainer.name])


@router.get("/{trainer}/models", summary="Files to choose from", responses=_MODELS)
def list_models(trainer: TrainerDep, studio: StudioDep) -> dict[str, list[str]]:
    """For each path of the configuration, what lies in the studio's folders and fits."""
    found = trainer.models([path for path in studio.roots.folders.values() if path.is_dir()])
    return {key: [str(path) for path in paths] for key, paths in found.items()}
