"""Fill a run's cache before it trains: `flowloom cache` as a run of the studio."""

from __future__ import annotations

from typing import Any

from flowloom.chores.base import Chore
from flowloom.errors import Problem
from flowloom.spec.run import RunConfig
from flowloom.spec.rundir import RunDir
from flowloom.trainers.flow import TRAINER as FLOW


class _CacheChore(Chore[RunConfig]):
    """Takes what `flowloom train` takes, FLOW's own files included."""

    def check(self, config: dict[str, Any]) -> list[Problem]:
        return FLOW.check(config)

    def prepare(self, config: dict[str, Any], run_dir: RunDir, source: str) -> None:
        FLOW.prepare(config, run_dir, source, self.name)


CHORE = _CacheChore(
    name="cache",
    title="Fill the cache",
    config_type=RunConfig,
    work="flowloom.engine.fill_run:fill_in_a_run",
)
