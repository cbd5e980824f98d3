"""Dependencies of routes: a route's signature lists everything that it uses."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Path, Request

from flowloom.run.directory import RunDir
from flowloom.run.results import Kind, result_folders
from flowloom.server.allowed_roots import AllowedRoots, inside
from flowloom.server.background import PeriodicJobs
from flowloom.server.datasets.registry import DatasetRegistry
from flowloom.server.datasets.uploads import Uploads
from flowloom.server.problems import NoSuchFile, NoSuchTrainer
from flowloom.server.runs.metrics import Charts
from flowloom.server.runs.queue import Queue
from flowloom.server.runs.registry import RunRegistry
from flowloom.server.settings import Settings
from flowloom.server.system import SystemMonitor
from flowloom.trainers.base import TrainerBackend


@dataclass
class Studio:
    """Everything that lives as long as the server."""

    settings: Settings
    roots: AllowedRoots
    runs: RunRegistry
    queue: Queue
    trainers: Mapping[str, TrainerBackend]
    system_monitor: SystemMonitor
    datasets: DatasetRegistry
    charts: Charts = field(default_factory=Charts)
    uploads: Uploads = field(default_factory=Uploads)
    jobs: PeriodicJobs = field(default_factory=PeriodicJobs)
    is_closing: Callable[[], bool] = lambda: False
    """True once streams must end because the server is shutting down."""

    def api(self, path: str) -> str:
        """The path of /api/`path` as browsers see it, with the path prefix."""
        return f"{self.settings.path}/api/{path}"

    def result_folders(self, run: RunDir, kind: Kind) -> list[pathlib.Path]:
        """The folders of a run's results that are in the roots, with links followed."""
        return [folder for folder in result_folders(run, kind) if self.roots.contains(folder)]

    def result(self, run: RunDir, kind: Kind, name: str) -> pathlib.Path:
        """The real path of one of a run's results.

        Raises:
            NoSuchFile, OutsideRoots
        """
        missing = NoSuchFile(name)
        for folder in self.result_folders(run, kind):
            try:
                return inside(folder, name)
            except NoSuchFile as error:
                missing = error
        raise missing


async def _studio(request: Request) -> Studio:
    return request.app.state.studio


StudioDep = Annotated[Studio, Depends(_studio)]


async def _runs(studio: StudioDep) -> RunRegistry:
    return studio.runs


async def _queue(studio: StudioDep) -> Queue:
    return studio.queue


RunId = Annotated[str, Path(description="Name of the run's directory.", examples=["fox-lora"])]


def _run_dir(studio: StudioDep, run_id: RunId) -> RunDir:
    return RunDir(studio.runs.path(run_id))


async def _trainer(
    studio: StudioDep,
    trainer: Annotated[str, Path(description="flow, kohya or flow-upstream.", examples=["flow"])],
) -> TrainerBackend:
    if trainer not in studio.trainers:
        raise NoSuchTrainer(trainer, sorted(studio.trainers))
    return studio.trainers[trainer]


RunsDep = Annotated[RunRegistry, Depends(_runs)]
QueueDep = Annotated[Queue, Depends(_queue)]
RunDep = Annotated[RunDir, Depends(_run_dir)]
TrainerDep = Annotated[TrainerBackend, Depends(_trainer)]
