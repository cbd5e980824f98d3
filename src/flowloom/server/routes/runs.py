"""Runs and their queue."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Query, status
from pydantic import BaseModel, ConfigDict, Field

from flowloom.files import read_json
from flowloom.launchers.base import LaunchSettings
from flowloom.run.directory import Control
from flowloom.run.resume import differences
from flowloom.server.deps import QueueDep, RunDep, RunId, RunsDep, StudioDep
from flowloom.server.off_loop import Router, in_group
from flowloom.server.problems import Damaged, Invalid, NameTaken, NoSuchRun, NotNow, problems, shows
from flowloom.server.runs.clusters import Place, place
from flowloom.server.runs.create import NewRun, ResumeRequest, make_run, patched, resume_run
from flowloom.server.runs.queue import Queue
from flowloom.server.runs.queue_state import OnFail, Pause
from flowloom.server.runs.result_files import ResultFile, files_of
from flowloom.server.runs.tail import LogPart, read_log
from flowloom.server.runs.view import RunName, RunView, State

router = Router(tags=["runs"], responses=problems())
MOST_RESULT_BYTES = 2**28
_RESULT = problems(NoSuchRun, NotNow) | shows({"num_images": 1200, "num_skipped": 3})


class RunPage(BaseModel):
    """A page of runs, newest first."""

    total: int
    runs: list[RunView]


class QueuePage(BaseModel):
    """The queued runs in order."""

    devices: list[str] = Field(description="Devices that runs can use.", examples=[["cuda:0", "cpu"]])
    clusters: list[Place] = Field(description="Clusters that runs can be submitted to.")
    runs: list[RunView]
    on_fail: OnFail = Field(
        description="Reaction to a run that fails or is killed: continue with the next one, or pause."
    )
    pause: Pause | None = Field(description="Since when the queue is paused, and why; null: not paused.")


class QueueChange(BaseModel):
    """New settings of the queue; omitted ones stay."""

    model_config = ConfigDict(extra="forbid")

    on_fail: OnFail | None = Field(
        None, description="`pause`: a failed run pauses the queue.", examples=["pause"]
    )
    paused: bool | None = Field(
        None, description="True pauses the queue until it is resumed.", examples=[False]
    )


class ControlRequest(BaseModel):
    """A request to a running run."""

    model_config = ConfigDict(extra="forbid")

    action: Control = Field(examples=["sample"])


class MoveRequest(BaseModel):
    """A new position in the queue."""

    model_config = ConfigDict(extra="forbid")

    before: str | None = Field(
        None, description="The run to move before; null: to the end.", examples=["fox-lora"]
    )


class DuplicateRequest(BaseModel):
    """A new run with the configuration of another one."""

    model_config = ConfigDict(extra="forbid")

    name: RunName | None = Field(None, examples=["fox-lora-2"])
    changes: dict[str, Any] = Field(
        {},
        description="JSON merge patch for its configuration.",
        examples=[{"training": {"lr": 5e-5}}],
    )
    devices: list[str] = []
    launch: LaunchSettings | None = None
    first: bool = False


class ValueChange(BaseModel):
    """Two values of one key; null: the key is missing."""

    old: Any = Field(alias="from")
    new: Any = Field(alias="to")


class ConfigDifference(BaseModel):
    """The keys in which two configurations differ."""

    changes: dict[str, ValueChange] = Field(examples=[{"training.lr": {"from": 1e-4, "to": 5e-5}}])


class ConfigChange(BaseModel):
    """A change of the configuration when the run was resumed."""

    time: float
    changes: dict[str, ValueChange]


class RunJson(BaseModel):
    """The content of run.json. Runs of other programs may omit everything but `config`."""

    trainer: str = Field("flow", examples=["flow"])
    config: dict[str, Any] = Field(examples=[{"training": {"lr": 1e-4}}])
    source: str = Field("", description="Origin of the configuration.", examples=["the studio"])
    seed: int | None = None
    notes: list[str] = []
    versions: dict[str, str] = Field({}, description="Versions of Python and of packages.")
    created: float | None = Field(None, description="Seconds since 1970.")
    imported_from: str | None = Field(None, description="URL of the mirror that the run was imported from.")
    changed: list[ConfigChange] = []


@router.get("/runs", summary="List runs")
def list_runs(
    registry: RunsDep,
    state: Annotated[list[State], Query(description="Only runs in one of these states.")] = [],  # noqa: B006
    trainer: Annotated[str | None, Query(examples=["flow"])] = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
    skip: Annotated[int, Query(ge=0, le=10**9)] = 0,
) -> RunPage:
    """All runs in the runs folder, including those started by hand."""
    total, runs = registry.store.page(state, trainer, limit, skip)
    return RunPage(total=total, runs=runs)


@router.get("/queue", summary="Show the queue")
def read_queue(queue: QueueDep) -> QueuePage:
    """Queued runs in the order in which they will start."""
    return _page(queue)


@router.patch("/queue", summary="Pause or resume the queue")
def change_queue(body: QueueChange, queue: QueueDep) -> QueuePage:
    """Running runs are not affected. The settings survive restarts."""
    queue.set_state(body.on_fail, body.paused)
    return _page(queue)


def _page(queue: Queue) -> QueuePage:
    state = queue.state
    return QueuePage(
        devices=list(queue.devices),
        clusters=[place(device) for device in queue.places],
        runs=queue.runs.store.queue(),
        on_fail=state.on_fail,
        pause=state.pause,
    )


@router.get("/runs/{run_id}", summary="Show a run", responses=problems(NoSuchRun))
def read_run(run_id: RunId, registry: RunsDep) -> RunView:
    """State and progress; if it failed, the reason and what to do."""
    return registry.get(run_id)


@router.delete(
    "/runs/{run_id}",
    summary="Delete a run",
    status_code=status.HTTP_204_NO_CONTENT,
    responses=problems(NoSuchRun, NotNow),
)
@in_group("waiting")
def delete_run(run_id: RunId, queue: QueueDep) -> None:
    """Permanently, with its checkpoints and samples."""
    queue.delete(run_id)


@router.get(
    "/runs/{run_id}/config",
    summary="A run's run.json",
    response_model=None,  # sent as stored, also if it was written by another program or version
    responses=problems(NoSuchRun) | {200: {"model": RunJson}},
)
def read_config(run: RunDep) -> dict[str, Any]:
    """Configuration, versions and origin; it holds no secrets."""
    return run.read_run()


@router.get("/runs/{run_id}/result", summary="Read a task's result", responses=_RESULT)
def read_result(run: RunDep) -> Any:
    """Its result.json, whose form depends on the task. Training runs have none."""
    try:
        return read_json(run.path / "result.json", MOST_RESULT_BYTES)
    except ValueError as error:
        raise Damaged(f"{run.path.name}/result.json: {error}", "Run it again.") from None
    except FileNotFoundError:
        raise NotNow(f"{run.path.name!r} has no result.", "Retry when it is finished.") from None


@router.get(
    "/runs/{run_id}/result/files", summary="List the files of a result", responses=problems(NoSuchRun, NotNow)
)
def list_result_files(run: RunDep, studio: StudioDep) -> list[ResultFile]:
    """Existing files in the studio's folders, for download."""
    return files_of(read_result(run), studio)


@router.get("/runs/{run_id}/compare/{other}", summary="Compare two runs", responses=problems(NoSuchRun))
def compare(run: RunDep, other: RunId, registry: RunsDep) -> ConfigDifference:
    """The keys in which the other run's configuration differs."""
    theirs = registry.run_dir(other).read_run()["config"]
    return ConfigDifference.model_validate(
        {"changes": dict(differences("", run.read_run()["config"], theirs))}
    )


@router.get("/runs/{run_id}/log", summary="Read the log", responses=problems(NoSuchRun))
def read_run_log(
    run: RunDep,
    offset: Annotated[
        int, Query(description="In bytes; negative: from the end.", ge=-(2**53), le=2**53)
    ] = -65_536,
    limit: Annotated[int, Query(ge=4, le=4 * 2**20)] = 65_536,
) -> LogPart:
    """A part of it. Request `next_offset` to follow it."""
    return read_log(run.log_txt, offset, limit)


@router.post("/runs/{run_id}/stop", summary="Save and stop", responses=problems(NoSuchRun, NotNow))
@in_group("waiting")
def stop_run(run_id: RunId, queue: QueueDep) -> RunView:
    """The run saves a checkpoint at its next step and ends."""
    return queue.stop(run_id, save=True)


@router.post("/runs/{run_id}/kill", summary="Stop now", responses=problems(NoSuchRun, NotNow))
@in_group("waiting")
def kill_run(run_id: RunId, queue: QueueDep) -> RunView:
    """The run ends at once. Progress since its newest checkpoint is lost."""
    return queue.stop(run_id, save=False)


@router.post(
    "/runs/{run_id}/control",
    summary="Stop, save a checkpoint or generate previews",
    responses=problems(NoSuchRun, NotNow),
)
def control_run(run_id: RunId, body: ControlRequest, queue: QueueDep) -> RunView:
    """The run acts on it at its next step and reports it in its events."""
    return queue.control(run_id, body.action)


@router.post("/runs/{run_id}/resume", summary="Resume a run", responses=problems(NoSuchRun, NotNow, Invalid))
def resume(run: RunDep, body: ResumeRequest, studio: StudioDep) -> RunView:
    """Queue a run that is over. It continues from its newest checkpoint, with optional changes."""
    return resume_run(studio, run, body)


@router.post(
    "/runs/{run_id}/cancel", summary="Remove a run from the queue", responses=problems(NoSuchRun, NotNow)
)
def cancel_run(run_id: RunId, queue: QueueDep) -> RunView:
    """Its directory stays, and resuming it queues it again."""
    return queue.cancel(run_id)


@router.post("/runs/{run_id}/move", summary="Move a run in the queue", responses=problems(NoSuchRun, NotNow))
def move_run(run_id: RunId, body: MoveRequest, queue: QueueDep) -> RunView:
    """Before another run, or to the end."""
    return queue.move(run_id, body.before)


@router.post(
    "/runs/{run_id}/duplicate",
    summary="Duplicate a run with changes",
    status_code=status.HTTP_201_CREATED,
    responses=problems(NoSuchRun, NameTaken, NotNow),
)
def duplicate_run(run: RunDep, body: DuplicateRequest, studio: StudioDep) -> RunView:
    """Queue a new run with this run's configuration and `changes`."""
    content = run.read_run()
    config = patched(content["config"], body.changes)
    new = NewRun(name=body.name, config=config, devices=body.devices, launch=body.launch, first=body.first)
    return make_run(
        studio,
        studio.queue.task_of(run),
        new,
        f"{run.path.name}, changed" if body.changes else run.path.name,
    )
