"""The tasks' door: `python -m flowloom.tasks RUN_DIR` does what its run.json says, or goes on with it."""

from __future__ import annotations

import importlib
import signal
import sys
import traceback
from pathlib import Path

from flowloom.config.secrets import redact, usable_secrets
from flowloom.errors import FlowloomError, RunError, disk_full, is_disk_full, one_line
from flowloom.run.directory import RunDir
from flowloom.run.events import EventWriter
from flowloom.streams import leave, settle_home
from flowloom.tasks import ALL
from flowloom.tasks.base import Progress, Task


def run_task(run_dir: RunDir) -> None:
    """Work `run_dir` off until it is over; every end is an event: finished, stopped or failed.

    Raises:
        FlowloomError: it failed; the event has been written.
    """
    content = run_dir.read_run()
    name = content.get("trainer")
    if name not in ALL:
        raise RunError(
            f"{run_dir.run_json}: {name!r} is not a task of this version: {', '.join(sorted(ALL))}."
        )
    with run_dir.locked():
        writer = EventWriter(run_dir.events_jsonl, usable_secrets().values())
        try:
            _work_off(ALL[name], content["config"], Progress(run_dir, writer))
        except Exception as error:
            failure = _explained(error, run_dir)
            sys.stderr.write(redact("".join(traceback.format_exception(error)), usable_secrets().values()))
            cure = "Mend the cause, then resume it: it goes on from where it was."
            # The log has all of it; our own errors are written to be read.
            told = str(failure) if isinstance(failure, FlowloomError) else one_line(str(failure))
            writer.write("failed", error=type(failure).__name__, message=told, cure=cure)
            raise failure from error
        finally:
            writer.close()


def _work_off(task: Task, config: object, progress: Progress) -> None:
    def stop(*_: object) -> None:
        progress.stop_is_wished = True

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    progress.phase("loading")
    module, _, function = task.work.partition(":")
    work = getattr(importlib.import_module(module), function)
    work(task.config_type.model_validate(config), progress)
    progress.end()


def _explained(error: Exception, run_dir: RunDir) -> Exception:
    if isinstance(error, OSError) and is_disk_full(error):
        return disk_full(run_dir.path, error)
    return error


def main() -> int:
    """Work off the run directory named on the command line; 0 when it ended well, 2 when it failed."""
    if len(sys.argv) != 2:
        sys.stderr.write("usage: python -m flowloom.tasks RUN_DIR\n")
        return 2
    try:
        run_task(RunDir(Path(sys.argv[1])))
    except FlowloomError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    settle_home()
    leave(main())
