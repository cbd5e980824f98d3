"""`python -m flowloom.tasks RUN_DIR`: run the task that run.json names, or continue it."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from typing import Any

from flowloom.config.secrets import redact, usable_secrets
from flowloom.errors import FlowloomError, RunError, disk_full, is_disk_full, one_line
from flowloom.run.directory import RunDir
from flowloom.run.events import EventWriter
from flowloom.run.process import run_module
from flowloom.tasks import ALL
from flowloom.tasks.base import FunctionTask, Progress
from flowloom.tasks.tagging.config import DescribingConfig


def run_task(run_dir: RunDir) -> None:
    """Run the task of `run_dir` to its end; each end is an event: finished, stopped or failed.

    Raises:
        FlowloomError: it failed; the event has been written.
    """
    content = run_dir.read_run()
    name = content.get("trainer")
    task = ALL.get(name) if isinstance(name, str) else None
    if not isinstance(task, FunctionTask):
        raise RunError(
            f"{run_dir.run_json}: {name!r} is not a task of this version: {', '.join(sorted(ALL))}."
        )
    if _rank() and issubclass(task.config_type, DescribingConfig):
        _run(task, content["config"], Progress(run_dir, None))
        return
    with run_dir.locked():
        writer = EventWriter(run_dir.events_jsonl, usable_secrets().values())
        try:
            _run(task, content["config"], Progress(run_dir, writer))
        except Exception as error:
            failure = _explained(error, run_dir)
            sys.stderr.write(redact("".join(traceback.format_exception(error)), usable_secrets().values()))
            hint = "Fix the cause, then resume the run: it continues where it stopped."
            # The log has the full text; our own messages are short enough to show.
            message = str(failure) if isinstance(failure, FlowloomError) else one_line(str(failure))
            writer.write("failed", error=type(failure).__name__, message=message, hint=hint)
            raise failure from error
        finally:
            writer.close()


def _rank() -> int:
    """The rank by torchrun's environment."""
    return int(os.environ.get("RANK", "0")) if int(os.environ.get("WORLD_SIZE", "1")) > 1 else 0


def _run(task: FunctionTask[Any], config: object, progress: Progress) -> None:
    def stop(*_: object) -> None:
        progress.is_stop_requested = True

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    progress.phase("loading")
    task.run(task.config_type.model_validate(config), progress)


def _explained(error: Exception, run_dir: RunDir) -> Exception:
    if isinstance(error, OSError) and is_disk_full(error):
        return disk_full(run_dir.path, error)
    return error


if __name__ == "__main__":
    run_module("flowloom.tasks", run_task)
