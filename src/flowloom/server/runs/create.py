"""New runs: checked, written and queued in one breath."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from flowloom.errors import Problem
from flowloom.files import write_json
from flowloom.run.directory import RunDir, default_name
from flowloom.run.resume import differences
from flowloom.run.task import Task
from flowloom.server.deps import Studio
from flowloom.server.problems import Invalid
from flowloom.server.runs.view import RunName, RunView
from flowloom.trainers.base import TrainerBackend


class NewRun(BaseModel):
    """A run to be made."""

    model_config = ConfigDict(extra="forbid")

    name: RunName | None = Field(
        None,
        description="Of its directory; none: one is made up.",
        examples=["fox-lora"],
    )
    config: dict[str, Any] = Field(
        description="As GET config describes it.", examples=[{"training": {"lr": 1e-4}}]
    )
    devices: list[str] = Field([], description="None: any one that is idle.", examples=[["cuda:0"]])
    first: bool = Field(False, description="Go before all that wait.")


class Restart(BaseModel):
    """How a run goes on."""

    model_config = ConfigDict(extra="forbid")

    devices: list[str] = Field(
        [], description="None: those that were chosen for it before, or any idle one.", examples=[["cuda:0"]]
    )
    first: bool = Field(False, description="Go before all that wait.")
    changes: dict[str, Any] = Field(
        {},
        description="Laid over its configuration (JSON merge patch), as far as its checkpoints bear it. "
        "A run that is finished goes on with a higher limit.",
        examples=[{"limits": {"max_steps": 4000}}],
    )


def problems_of(studio: Studio, task: Task, config: dict[str, Any]) -> list[Problem]:
    """Everything that is wrong with a configuration."""
    strays = list(studio.roots.path_problems(config))
    # What lies outside of the folders is not looked at: whether it is there is nobody's business.
    return strays or task.check(config)


def make_run(studio: Studio, task: Task, new: NewRun, source: str = "the studio") -> RunView:
    """Make and queue a run: whole, or not at all.

    Raises:
        Invalid: with everything that is wrong.
        NameTaken: there is such a run.
    """
    if problems := problems_of(studio, task, new.config):
        raise Invalid.of(problems)
    studio.queue.require_devices(new.devices, task)
    with studio.runs.creating(new.name, default_name(task.name)) as run_dir:
        task.prepare(new.config, run_dir, source)
        studio.queue.submit(run_dir, new.devices, first=new.first)
    return studio.runs.refresh(run_dir.path.name)


def resume_run(studio: Studio, run_dir: RunDir, how: Restart) -> RunView:
    """Queue a run again, from its newest checkpoint, changed as far as that bears it.

    Raises:
        Invalid: with everything that is wrong with the changes, or fixed by the run's checkpoints.
        NotNow: it waits or runs, or it is finished and nothing is changed.
    """
    queue, is_changed = studio.queue, bool(how.changes)
    queue.require_devices(how.devices, queue.task_of(run_dir))
    with queue.mutex:
        queue.require_resumable(studio.runs.refresh(run_dir.path.name), is_changed=is_changed)
        if is_changed:
            _change(studio, run_dir, how.changes)
        return queue.resume(run_dir, how.devices, first=how.first, is_changed=is_changed)


def _change(studio: Studio, run_dir: RunDir, changes: dict[str, Any]) -> None:
    """Write the changed configuration, and what it was before, or leave everything as it is."""
    old = run_dir.read_run()
    task = studio.queue.task_of(run_dir)
    config = patched(old["config"], changes)
    immutable = task.immutable_keys if isinstance(task, TrainerBackend) else ("",)
    fixed = [path for path, _ in differences("", old["config"], config) if path.startswith(immutable)]
    if fixed:
        message = "is fixed by what the run has made so far: duplicate the run to change it."
        raise Invalid.of([Problem(path, message) for path in fixed], "/changes")
    if problems := problems_of(studio, task, config):
        raise Invalid.of(problems, "/changes")
    task.prepare(config, run_dir, old["source"])
    new = run_dir.read_run()
    record = {"time": new["created"], "changes": dict(differences("", old["config"], new["config"]))}
    changed = [*old.get("changed", []), record]
    kept = {name: old[name] for name in ("created", "folders") if name in old}
    write_json(run_dir.run_json, new | kept | {"changed": changed})


def patched(value: Any, patch: Any) -> Any:
    """`value` with a JSON merge patch (RFC 7396) laid over it."""
    if not isinstance(patch, dict):
        return patch
    base = value if isinstance(value, dict) else {}
    merged = base | {name: patched(base.get(name), change) for name, change in patch.items()}
    return {name: item for name, item in merged.items() if not (name in patch and patch[name] is None)}
