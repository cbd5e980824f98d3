"""Creating, duplicating and resuming runs."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from flowloom.errors import ConfigError, Problem
from flowloom.json_types import is_object
from flowloom.launchers.base import LaunchSettings
from flowloom.run.directory import RunDir, default_name
from flowloom.run.resume import change_run, require_mutable
from flowloom.run.task import Task
from flowloom.server.deps import Studio
from flowloom.server.problems import Invalid
from flowloom.server.runs.clusters import require_mirror
from flowloom.server.runs.view import RunName, RunView
from flowloom.trainers.base import TrainerBackend


class NewRun(BaseModel):
    """A run to create."""

    model_config = ConfigDict(extra="forbid")

    name: RunName | None = Field(
        None,
        description="Name of its directory; generated if empty.",
        examples=["fox-lora"],
    )
    config: dict[str, Any] = Field(
        description="As described by GET /api/{trainer}/config.",
        examples=[{"training": {"lr": 1e-4}}],
    )
    devices: list[str] = Field([], description="Devices to use; empty: any idle one.", examples=[["cuda:0"]])
    launch: LaunchSettings | None = Field(
        default=None, description="The machines, if the device is a cluster; null: one machine without GPUs."
    )
    first: bool = Field(False, description="Start before every other queued run.")


class ResumeRequest(BaseModel):
    """How to resume a run."""

    model_config = ConfigDict(extra="forbid")

    devices: list[str] = Field(
        [],
        description="Devices to use; empty: those chosen before, or any idle one.",
        examples=[["cuda:0"]],
    )
    launch: LaunchSettings | None = Field(
        default=None, description="The machines, if the device is a cluster; null: as before."
    )
    first: bool = Field(False, description="Start before every other queued run.")
    changes: dict[str, Any] = Field(
        {},
        description="JSON merge patch for its configuration, without keys that its checkpoints depend on. "
        "A finished run continues if a limit is raised.",
        examples=[{"limits": {"max_steps": 4000}}],
    )


def problems_of(studio: Studio, task: Task, config: dict[str, Any]) -> list[Problem]:
    """Every problem of a configuration."""
    outside = list(studio.roots.path_problems(config))
    # Paths outside the roots are not checked further, which would reveal if they exist.
    return outside or task.check(config)


def make_run(studio: Studio, task: Task, new: NewRun, source: str = "the studio") -> RunView:
    """Create and queue a run, or leave nothing behind.

    Raises:
        Invalid: with every problem of the configuration.
        NameTaken: a run has this name.
    """
    if problems := problems_of(studio, task, new.config):
        raise Invalid.of(problems)
    studio.queue.require_devices(new.devices, task, new.launch)
    require_mirror(new.devices, new.config)
    with studio.runs.creating(new.name, default_name(task.name)) as run_dir:
        task.prepare(new.config, run_dir, source)
        studio.queue.submit(run_dir, new.devices, first=new.first, launch=new.launch)
    return studio.runs.refresh(run_dir.path.name)


def resume_run(studio: Studio, run_dir: RunDir, how: ResumeRequest) -> RunView:
    """Queue a run again, to continue from its newest checkpoint with `how.changes`.

    Raises:
        Invalid: with every problem of the changes.
        NotNow: it is queued or running, or it is finished and nothing is changed.
    """
    queue, is_changed = studio.queue, bool(how.changes)
    queue.require_devices(how.devices, queue.task_of(run_dir), how.launch)
    with queue.mutex:
        queue.require_resumable(studio.runs.refresh(run_dir.path.name), is_changed=is_changed)
        if is_changed:
            _change(studio, run_dir, how.changes)
        require_paths_inside(studio, run_dir)
        return queue.resume(run_dir, how.devices, first=how.first, is_changed=is_changed, launch=how.launch)


def require_paths_inside(studio: Studio, run_dir: RunDir) -> None:
    """Check the paths of a run that was imported from a bucket, where others may have written them.

    Raises:
        Invalid: one is outside of the studio's folders.
    """
    content = run_dir.read_run()
    if "imported_from" in content and (problems := list(studio.roots.path_problems(content["config"]))):
        raise Invalid.of(problems, "/changes")


def _change(studio: Studio, run_dir: RunDir, changes: dict[str, Any]) -> None:
    """Change the run's configuration, or raise Invalid and leave it unchanged."""
    old, task = run_dir.read_run()["config"], studio.queue.task_of(run_dir)
    immutable_keys = task.immutable_keys if isinstance(task, TrainerBackend) else ("",)
    config = patched(old, changes)
    try:
        require_mutable(run_dir, old, config, immutable_keys)
        if problems := problems_of(studio, task, config):
            raise Invalid.of(problems, "/changes")
        if isinstance(task, TrainerBackend):
            change_run(run_dir, task.resolve(config), immutable_keys)
    except ConfigError as error:
        raise Invalid.of(error.problems, "/changes") from None


def patched(value: Any, patch: Any) -> Any:
    """Return `value` with a JSON merge patch (RFC 7396) applied."""
    if not is_object(patch):
        return patch
    base = value if is_object(value) else dict[str, Any]()
    merged = base | {name: patched(base.get(name), change) for name, change in patch.items()}
    return {name: item for name, item in merged.items() if not (name in patch and patch[name] is None)}
