"""Chores: what runs beside training, started here and followed like every run."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Depends, Path, status
from pydantic import BaseModel, Field

from flowloom.chores import ALL
from flowloom.chores.base import Chore
from flowloom.server.deps import StudioDep
from flowloom.server.making import NewRun, make_run, problems_of
from flowloom.server.off_loop import Router
from flowloom.server.problems import Invalid, NameTaken, NoSuchTrainer, problems
from flowloom.server.routes.training import Candidate, ConfigVerdict
from flowloom.server.runs import RunView

router = Router(tags=["chores"], responses=problems(NoSuchTrainer))


class ChoreView(BaseModel):
    """A chore."""

    name: str = Field(examples=["cache"])
    title: str
    needs_device: bool = Field(description="Whether it waits for a device, as training does.")


class ChoreConfig(BaseModel):
    """What a chore's configuration is made of."""

    schema_: dict[str, Any] = Field(serialization_alias="schema", description="JSON schema.")
    defaults: dict[str, Any] = Field(examples=[{"limits": {"max_steps": None}}])


async def _chore(chore: Annotated[str, Path(examples=["cache"])]) -> Chore[Any]:
    if chore not in ALL:
        raise NoSuchTrainer(chore, sorted(ALL))
    return ALL[chore]


ChoreDep = Annotated[Chore[Any], Depends(_chore)]


@router.get("/chores", summary="List chores")
def list_chores() -> list[ChoreView]:
    """Each has the routes below under its name."""
    return [ChoreView(name=one.name, title=one.title, needs_device=one.needs_device) for one in ALL.values()]


@router.get("/chores/{chore}/config", summary="Schema and defaults")
def read_chore_config(chore: ChoreDep) -> ChoreConfig:
    """All that a form needs."""
    return ChoreConfig(schema_=chore.schema(), defaults=chore.defaults())


@router.post("/chores/{chore}/config", summary="Check a configuration")
def check_chore_config(chore: ChoreDep, body: Candidate, studio: StudioDep) -> ConfigVerdict:
    """Every problem at once, each with its JSON pointer."""
    found = Invalid.of(problems_of(studio, chore, body.config))
    return ConfigVerdict(is_valid=not found.errors, problems=found.errors)


@router.post(
    "/chores/{chore}/start",
    summary="Queue a chore",
    status_code=status.HTTP_201_CREATED,
    responses=problems(NameTaken),
)
def start_chore(chore: ChoreDep, body: NewRun, studio: StudioDep) -> RunView:
    """A run like every other: follow it at `/api/runs/{id}/events`; what it found is its result."""
    return make_run(studio, chore, body)
