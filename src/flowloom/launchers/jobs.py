"""A run's job: submit it once, ask for its state, stop it, and record its end."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from pydantic import ValidationError

from flowloom.config.secrets import may_need_secrets, read_secrets, usable_secrets
from flowloom.errors import RunError
from flowloom.files import read_plain, replacing, write_json
from flowloom.launchers import LAUNCHERS
from flowloom.launchers.base import (
    LAUNCHED,
    Job,
    JobRecord,
    JobStatus,
    Launcher,
    launch_dir,
    limit_file,
)
from flowloom.run.directory import RunDir, step_of
from flowloom.run.events import EventWriter, read_events

_LOG_BYTES = 65_536
_CAUSES = {
    "RendezvousTimeoutError": "Not all nodes joined in time: a node did not start Python, or cannot "
    "reach the first one.",
    "RendezvousConnectionError": "The nodes cannot connect to the first one: check the firewall.",
}
AT_LIMIT = "time limit reached: resume the run"
"""In the detail of a job."""
_ENDS = ("finished", "stopped", "failed")


def read_record(run_dir: RunDir) -> JobRecord | None:
    """The run's newest job; None if it was never launched."""
    try:
        return JobRecord.model_validate_json(read_plain(launch_dir(run_dir) / "job.json"))
    except (FileNotFoundError, NotADirectoryError, ValidationError):
        return None


def submit(run_dir: RunDir, launcher: Launcher, job: Job, secrets: Mapping[str, str]) -> JobRecord:
    """Write the launcher's files into the run directory and submit them.

    Args:
        secrets: environment variables of the job; they are in no file.

    Raises:
        RunError: the run is in use or submitted already, or the cluster's tool is missing or refuses the job.
    """
    config = run_dir.read_run()["config"]
    files = launcher.files(run_dir, job, config)
    require_not_submitted(run_dir)
    if run_dir.is_running():
        raise RunError(f"{run_dir.path} is running: stop it first.")
    folder = launch_dir(run_dir)
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        with replacing(folder / name) as file:
            file.write(text.encode())
    limit_file(run_dir).unlink(missing_ok=True)
    for request in run_dir.control_dir.glob("*"):
        # Requests to an earlier process are not meant for this job.
        request.unlink()
    submitted = time.time()
    ours = read_secrets() if may_need_secrets(config) else {}
    record = JobRecord(
        launcher=launcher.name,
        job_id=launcher.submit(run_dir, job, {**ours, **secrets}),
        nodes=job.nodes,
        gpus=job.gpus,
        processes=job.processes,
        options=dict(job.options),
        submitted=submitted,
    )
    _write(run_dir, record)
    return record


def _write(run_dir: RunDir, record: JobRecord) -> None:
    write_json(launch_dir(run_dir) / "job.json", record.model_dump(mode="json"))


def require_not_submitted(run_dir: RunDir) -> None:
    """Check that no job of a cluster trains the run or waits to train it.

    A lock on a shared disk does not cover a job that waits, and not every network disk has locks.

    Raises:
        RunError: a job does, or the cluster's tool does not answer.
    """
    record = read_record(run_dir)
    if record is None or os.environ.get(LAUNCHED):
        return
    status = status_of(run_dir, record)
    if status.state in ("pending", "running"):
        title = LAUNCHERS[record.launcher].title
        raise RunError(
            f"{run_dir.path} is submitted to {title} as job {record.job_id}: {status.detail}. "
            f"To stop it with a checkpoint: flowloom launch stop {run_dir.path}"
        )


def status_of(run_dir: RunDir, record: JobRecord) -> JobStatus:
    """The state of a run's job. If it ended without an event, a failure is recorded.

    Raises:
        RunError: this version has no such launcher, or the cluster's tool does not answer.
    """
    if record.ended is not None:
        return JobStatus("ended", record.detail)
    launcher = launcher_named(record.launcher)
    status = launcher.status(record)
    if status.state == "ended" and limit_file(run_dir).exists():
        status = JobStatus("ended", f"{status.detail}, {AT_LIMIT}")
    if status.state == "ended" and launcher.shares_disk:  # otherwise the events are elsewhere
        record_failure(run_dir, record, f"{launcher.title} ended job {record.job_id}: {status.detail}.")
    if status.state != "unknown" and (status.state, status.detail) != (record.state, record.detail):
        ended = round(time.time(), 3) if status.state == "ended" else None
        known = {"state": status.state, "detail": status.detail, "ended": ended}
        _write(run_dir, record.model_copy(update=known))
    return status


def stop(run_dir: RunDir, *, save: bool = True) -> JobStatus:
    """Stop a run's job: with a checkpoint if it runs and `save`, otherwise by the cluster's tool.

    Raises:
        RunError: the run has no job, or the cluster's tool does not answer.
    """
    record = read_record(run_dir)
    if record is None:
        raise RunError(f"{run_dir.path} was not started by 'flowloom launch'.")
    status = status_of(run_dir, record)
    launcher = launcher_named(record.launcher)
    if status.state == "running" and save and not launcher.shares_disk:
        raise RunError(
            f"{launcher.title}'s machines have no disk in common with this one: a request to save does not "
            "reach the run. To cancel the job: add --now."
        )
    if status.state in ("running", "unknown") and save:
        run_dir.request("stop")
    elif status.state in ("pending", "running"):
        launcher.cancel(record)
        _write(run_dir, record.model_copy(update={"is_cancelled": True}))
    return status


def launcher_named(name: str) -> Launcher:
    """A launcher by its name.

    Raises:
        RunError: there is none.
    """
    if name not in LAUNCHERS:
        raise RunError(f"there is no launcher {name!r}. Available: {', '.join(LAUNCHERS)}.")
    return LAUNCHERS[name]


def record_failure(run_dir: RunDir, record: JobRecord, message: str) -> None:
    """Record a failure of the run, unless a rank recorded how this job ended, or the run is in use again.

    A cancelled job ends as stopped.
    """
    with suppress(RunError), run_dir.locked():
        if not _has_end(run_dir, record.submitted):
            writer = EventWriter(run_dir.events_jsonl, usable_secrets().values())
            try:
                _write_end(run_dir, writer, "" if record.is_cancelled else message)
            finally:
                writer.close()


def record_time_limit(run_dir: RunDir, *, is_requeued: bool) -> bool:
    """Record that the job reached its time limit; True if the job is to be queued again.

    It is not if the run ended in another way, or if it has no newer checkpoint than when the job started: the
    next job would end in the same way.
    """
    newest = run_dir.latest_checkpoint()
    step = step_of(newest) if newest else 0
    events = list(read_events(run_dir.events_jsonl))
    ended = next((event for event in reversed(events) if event["kind"] in _ENDS), None)
    began = next((event for event in reversed(events) if event["kind"] == "started"), None)
    if ended is None or began is None or ended["kind"] != "stopped":
        return False
    is_ahead = step > (began["resumed_from"] or 0)
    then = f"Resume the run: it continues from step {step}."
    if is_requeued and is_ahead:
        then = f"The job is queued again, and continues from step {step}."
    elif is_requeued:
        then = "The job is not queued again, because it saved nothing new: give it more time."
    with suppress(RunError), run_dir.locked():
        writer = EventWriter(run_dir.events_jsonl, usable_secrets().values())
        writer.write("warning", message=f"The job reached its time limit, and the run stopped. {then}")
        writer.close()
    return is_requeued and is_ahead


def cause_in(log: Path) -> str:
    """The cause of a job's failure from its log, or the log's last line."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _LOG_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    known = next((sentence for name, sentence in _CAUSES.items() if name in text), "")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("srun: error:")]
    return known or (errors or lines[::-1] or [""])[0][:500]


def _has_end(run_dir: RunDir, since: float) -> bool:
    """True if the attempt that began after `since` has recorded its end."""
    newest = ""
    for event in read_events(run_dir.events_jsonl):
        if event["time"] >= since and event["kind"] in ("started", *_ENDS):
            newest = event["kind"]
    return newest in _ENDS


def _write_end(run_dir: RunDir, writer: EventWriter, failure: str) -> None:
    newest = run_dir.latest_checkpoint()
    if not failure:
        writer.write("stopped", step=step_of(newest) if newest else 0)
        return
    then = f"the run continues from {newest.name}" if newest else "the run starts from step 0"
    hint = f"Logs are in {launch_dir(run_dir)}. Launch the run directory again: {then}."
    writer.write("failed", error="JobEnded", message=failure, hint=hint)
