"""Fill the cache of a configuration before it trains: `flowloom cache` as a run."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from flowloom.config.run import RunConfig
from flowloom.errors import Problem
from flowloom.run.directory import RunDir
from flowloom.tasks.base import FunctionTask, Progress
from flowloom.trainers.engine import TRAINER as FLOW


class _CacheTask(FunctionTask[RunConfig]):
    """Accepts the same configurations as `flowloom train`, FLOW's own files included."""

    def check(self, config: dict[str, Any]) -> list[Problem]:
        return FLOW.check(config)

    def prepare(self, config: dict[str, Any], run_dir: RunDir, source: str) -> None:
        FLOW.prepare(config, run_dir, source, self.name)


def _fill(config: RunConfig, progress: Progress) -> None:
    """The result counts encoded items and lists skipped ones. Open shards stay valid after a stop."""
    from flowloom.engine.fill_cache import fill

    phase = ""

    def on_progress(what: str, done: int, total: int) -> None:
        nonlocal phase
        if what != phase:
            phase = what
            progress.phase(what)
        progress.step(done, total)
        progress.raise_if_stopped()

    filled = fill(config, on_progress)
    if filled.full:
        progress.warn(f"{filled.full}: the rest is encoded during training.")
    progress.save_result(asdict(filled))


CACHE = _CacheTask(name="cache", title="Fill the cache", config_type=RunConfig, body=_fill)
