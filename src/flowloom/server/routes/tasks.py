"""Tasks other than training, started here and followed like every run."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Depends, Path, status
from pydantic import BaseModel, Field

from flowloom.run.task import Task
from flowloom.server.deps import StudioDep
from flowloom.server.off_loop import Router
from flowloom.server.problems import Invalid, NameTaken, NoSuchTask, problems
from flowloom.server.routes.training import ConfigRequest, ConfigVerdict
from flowloom.server.runs.create import NewRun, make_run, problems_of
from flowloom.server.runs.view import RunView
from flowloom.tasks import ALL

router = Router(tags=["tasks"], responses=problems(NoSuchTask))


class TaskView(BaseModel):
    """A task."""

    name: str = Field(examples=["cache"])
    title: str
    needs_device: bool = Field(description="True if it waits for a free device.")


class TaskConfig(BaseModel):
    """Schema and defaults of a task's configuration."""

    schema_: dict[str, Any] = Field(serialization_alias="schema", description="JSON schema.")
    defaults: dict[str, Any] = Field(examples=[{"limits": {"max_steps": None}}])


async def _task(task: Annotated[str, Path(examples=["cache"])]) -> Task:
    if task not in ALL:
        raise NoSuchTask(task, sorted(ALL))
    return ALL[task]


TaskDep = Annotated[Task, Depends(_task)]


@router.get("/tasks", summary="List tasks")
def list_tasks() -> list[TaskView]:
    """Each has the routes below under its name."""
    return [
        TaskView(name=task.name, title=task.title, needs_device=task.needs_device) for task in ALL.values()
    ]


@router.get("/tasks/{task}/config", summary="Schema and defaults")
def read_task_config(task: TaskDep) -> TaskConfig:
    """For a form."""
    return TaskConfig(schema_=task.schema(), defaults=task.defaults())


@router.post("/tasks/{task}/config", summary="Check a configuration")
def check_task_config(task: TaskDep, body: ConfigRequest, studio: StudioDep) -> ConfigVerdict:
    """Every problem at once, each with its JSON pointer."""
    found = Invalid.of(problems_of(studio, task, body.config))
    return ConfigVerdict(is_valid=not found.errors, problems=found.errors)


@router.post(
    "/tasks/{task}/start",
    summary="Queue a task",
    status_code=status.HTTP_201_CREATED,
    responses=problems(NameTaken),
)
def start_task(task: TaskDep, body: NewRun, studio: StudioDep) -> RunView:
    """Start a run. Follow it at `/api/runs/{id}/events`; then read its result."""
    return make_run(studio, task, body)
