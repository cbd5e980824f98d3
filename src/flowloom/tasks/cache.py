"""Fill a run's cache before it trains: `flowloom cache` as a run of the studio."""

from __future__ import annotations

from typing import Any

from flowloom.config.run import RunConfig
from flowloom.errors import Problem
from flowloom.run.directory import RunDir
from flowloom.tasks.base import Task
from flowloom.trainers.engine import TRAINER as FLOW


class _CacheTask(Task[RunConfig]):
    """Takes what `flowloom train` takes, FLOW's own files included."""

    def check(self, config: dict[str, Any]) -> list[Problem]:
        return FLOW.check(config)

    def prepare(self, config: dict[str, Any], run_dir: RunDir, source: str) -> None:
        FLOW.prepare(config, run_dir, source, self.name)


TASK = _CacheTask(
    name="cache",
    title="Fill the cache",
    config_type=RunConfig,
    work="flowloom.tasks.fill_run:fill_in_a_run",
)
