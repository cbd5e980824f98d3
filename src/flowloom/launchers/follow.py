"""`python -m flowloom.launchers.follow RUN_DIR PLACE SETTINGS`: submit a run, and wait until its job ends.

The studio starts it as the process of a run on a cluster. It records the state of the job in launch/job.json.
A stop request cancels a job that still waits, and SIGTERM cancels any. If the run has an active job already,
that one is followed.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from types import FrameType
from typing import Any

from flowloom.errors import FlowloomError, RunError, SourceError
from flowloom.launchers import LAUNCHERS
from flowloom.launchers.base import Job, JobState, Launcher, LaunchSettings
from flowloom.launchers.jobs import read_record, status_of, stop, submit
from flowloom.launchers.places import place_of
from flowloom.run.directory import RunDir
from flowloom.run.mirror.pull import Pull
from flowloom.run.process import FAILED

ASK_EVERY_S, PULL_EVERY_S = 2.0, 10.0
_ACTIVE: tuple[JobState, ...] = ("pending", "running")


class Follower:
    """Waits for the job of a run."""

    def __init__(self, run_dir: RunDir):
        self.run_dir = run_dir
        self._is_cancelled = threading.Event()
        self._trouble = ""
        self._pulled_at = float("-inf")
        record = read_record(run_dir)
        self._is_elsewhere = record is not None and not LAUNCHERS[record.launcher].shares_disk
        """True if the results come from the run's mirror."""

    def cancel(self, _number: int = 0, _frame: FrameType | None = None) -> None:
        """Cancel the job as soon as the cluster's tool answers."""
        self._is_cancelled.set()

    def wait(self) -> None:
        """Return when the job has ended. A tool that does not answer is asked again."""
        while True:
            try:
                state = self._state()
                if self._is_elsewhere:
                    self._pull(is_over=state == "ended")
                if state == "ended":
                    return
            except (RunError, SourceError) as error:
                if str(error) != self._trouble:
                    print(error, file=sys.stderr, flush=True)  # noqa: T201 -- the run's log
                self._trouble = str(error)
            if self._is_cancelled.is_set():
                time.sleep(ASK_EVERY_S)
            else:
                self._is_cancelled.wait(ASK_EVERY_S)

    def _pull(self, *, is_over: bool) -> None:
        pull = Pull(self.run_dir)
        if is_over:
            pull.finish(lambda line: print(line, flush=True))  # noqa: T201 -- the run's log
        elif time.monotonic() - self._pulled_at > PULL_EVERY_S:
            self._pulled_at = time.monotonic()
            pull.update()

    def _state(self) -> JobState:
        record = read_record(self.run_dir)
        if record is None:
            return "ended"
        state = status_of(self.run_dir, record).state
        # A request to save reaches only machines that share the disk.
        can_stop = state == "pending" or (self._is_elsewhere and state in _ACTIVE)
        is_stopped = can_stop and (self.run_dir.control_dir / "stop").exists()
        if not record.is_cancelled and (is_stopped or (state in _ACTIVE and self._is_cancelled.is_set())):
            stop(self.run_dir, save=False)
        return state


def follow(run_dir: RunDir, place: str, settings: LaunchSettings) -> None:
    """Submit the run, unless its job is active already, and wait for the job's end.

    Raises:
        RunError: the cluster's tool is missing or refuses the job.
    """
    chosen = place_of([place])
    if chosen is None:
        raise RunError(f"there is no cluster {place!r}.")
    launcher, option = chosen
    if problem := mirror_problem(launcher, run_dir.read_run()["config"]):
        raise RunError(problem)
    record = read_record(run_dir)
    if record is None or status_of(run_dir, record).state not in _ACTIVE:
        job = Job(settings.nodes, settings.gpus, options={**option, **settings.options})
        submit(run_dir, launcher, job, {})
    follower = Follower(run_dir)
    signal.signal(signal.SIGTERM, follower.cancel)
    follower.wait()


def mirror_problem(launcher: Launcher, config: Any) -> str:
    """The reason why a run with `config` could not be followed from here; empty if it can."""
    mirror: dict[str, Any] = config.get("mirror") or {}
    if launcher.shares_disk or mirror.get("url"):
        return ""
    return f"{launcher.title}'s machines have no disk in common with this one: set mirror.url to a bucket."


def main() -> int:
    """Follow the run named on the command line; the exit status."""
    path, place, settings = sys.argv[1:]
    try:
        follow(RunDir(path), place, LaunchSettings.model_validate_json(settings))
    except FlowloomError as error:
        sys.stderr.write(f"{error}\n{error.hint}".rstrip() + "\n")
        return FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main())
