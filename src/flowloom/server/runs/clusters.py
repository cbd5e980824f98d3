"""Clusters as devices: where runs can be submitted to, and jobs that were submitted without the studio."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, Field

from flowloom.errors import Problem
from flowloom.launchers import LAUNCHERS
from flowloom.launchers.base import LaunchSettings
from flowloom.launchers.follow import mirror_problem
from flowloom.launchers.jobs import read_record, status_of
from flowloom.launchers.places import place_of
from flowloom.run.directory import RunDir
from flowloom.run.task import Command, Task
from flowloom.server.background import isolate_errors
from flowloom.server.problems import Invalid, NotNow
from flowloom.trainers.engine import TRAINER

if TYPE_CHECKING:
    from flowloom.server.runs.queue import Queue
    from flowloom.server.runs.view import RunView

UPDATE_S = 20.0
_log = logging.getLogger("flowloom")


class Place(BaseModel):
    """A cluster, or a part of it, that takes runs."""

    device: str = Field(description="To be given as the only one of `devices`.", examples=["slurm:gpu"])
    title: str = Field(examples=["Slurm: gpu partition"])
    options: list[str] = Field(description="Options that a run may set.", examples=[["account", "time"]])


def place(device: str) -> Place:
    """A place as shown to clients."""
    launcher, option = place_of([device]) or (LAUNCHERS["local"], {"": device})
    ((name, value),) = option.items()
    kind = f" {name}" if launcher.name == "slurm" else ""
    options = sorted(launcher.safe_options - {name})
    return Place(device=device, title=f"{launcher.title}: {value}{kind}", options=options)


def require_launch(
    places: Sequence[str], device: str, task: Task, settings: LaunchSettings | None
) -> LaunchSettings:
    """The settings of a run on the cluster `device`.

    Raises:
        Invalid: there is no such cluster, it cannot run `task`, or clients may not set an option.
    """
    if device not in places:
        hint = (
            f"Choose from {', '.join(places)}." if places else "Its command-line tool is not installed here."
        )
        raise Invalid.of([Problem("", f"{device} takes no runs from here.", hint=hint)], "/devices")
    if task.name != TRAINER.name:
        hint = "Choose a device of this machine."
        raise Invalid.of([Problem("", f"{task.title} cannot run on a cluster.", hint=hint)], "/devices")
    chosen, allowed = settings or LaunchSettings(), place(device).options
    if wrong := sorted(set(chosen.options) - set(allowed)):
        hint = f"Allowed: {', '.join(allowed)}. 'flowloom launch' takes any."
        problem = Problem("options", f"{', '.join(wrong)} cannot be set in the studio.", hint=hint)
        raise Invalid.of([problem], "/launch")
    return chosen


def require_mirror(devices: Sequence[str], config: dict[str, Any]) -> None:
    """Check that a run on machines without our disk is mirrored.

    Raises:
        Invalid: it is not.
    """
    chosen = place_of(devices)
    if chosen and (message := mirror_problem(chosen[0], config)):
        raise Invalid.of([Problem("mirror.url", message)])


def require_reach(run: RunView) -> None:
    """Check that requests reach the machines of a run.

    Raises:
        NotNow: they have no disk in common with this one.
    """
    chosen = place_of(run.devices)
    if chosen and not chosen[0].shares_disk:
        hint = "Stop it, which cancels the job; the newest checkpoint in the mirror stays."
        raise NotNow(f"Requests do not reach the machines of {chosen[0].title}.", hint)


def follow_command(run_dir: RunDir, device: str, settings: LaunchSettings) -> Command:
    """The process that submits a run and waits for the end of its job."""
    follow = ["-m", "flowloom.launchers.follow", str(run_dir.path.absolute()), device]
    return Command([sys.executable, *follow, settings.model_dump_json()])


def settings_of(run_dir: RunDir) -> LaunchSettings:
    """The machines of a run's newest job, for a resume without others."""
    record = read_record(run_dir)
    if record is None:
        return LaunchSettings()
    launcher = LAUNCHERS[record.launcher]
    kept = {name: text for name, text in record.options.items() if name != launcher.place_option}
    return LaunchSettings(nodes=record.nodes, gpus=record.gpus, options=kept)


def update_clusters(queue: Queue) -> None:
    """Ask the clusters' tools for places, and follow jobs that no process of this studio follows.

    A tool that does not answer keeps its places until it does; each question has a time limit.
    """
    found: dict[str, list[str]] = {}
    for launcher in LAUNCHERS.values():
        found[launcher.name] = [each for each in queue.places if each.startswith(f"{launcher.name}:")]
        with isolate_errors(partial(_log.warning, "%s: %s", launcher.title)):
            found[launcher.name] = launcher.places()
    queue.places = tuple(chain.from_iterable(found.values()))
    names = {each.partition(":")[0] for each in queue.places}
    for run in queue.runs.store.with_states("created", "interrupted"):
        with isolate_errors(partial(_log.warning, "%s: %s", run.id)):
            _follow(queue, RunDir(queue.runs.runs_dir / run.id), names)


def _follow(queue: Queue, run_dir: RunDir, names: set[str]) -> None:
    """Queue a run whose job still waits or runs, with a command that only follows it."""
    record = read_record(run_dir)
    if record is None or record.ended or record.launcher not in names:
        return
    launcher = LAUNCHERS[record.launcher]
    value = record.options.get(launcher.place_option)
    default = next(each for each in queue.places if each.startswith(f"{record.launcher}:"))
    device = f"{record.launcher}:{value}" if value else default
    if status_of(run_dir, record).state in ("pending", "running"):
        queue.submit(run_dir, [device], resume=True)
    queue.runs.refresh_if_present(run_dir.path.name)
