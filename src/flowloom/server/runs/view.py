"""The state of a run, read from its directory."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, TypeGuard

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from flowloom.files import open_plain, read_json, whole_text
from flowloom.json_types import is_object
from flowloom.launchers.base import JobState
from flowloom.launchers.jobs import read_record
from flowloom.locks import is_held
from flowloom.run.directory import RUN_NAME, RunDir
from flowloom.run.events import last_kept_step
from flowloom.run.results import checkpoints_of
from flowloom.run.task import TaskKind
from flowloom.server.background import isolate_errors
from flowloom.server.runs.process_files import Exit, ProcessRecord, QueueEntry, StopRequest, lock_path
from flowloom.server.runs.tail import is_number
from flowloom.tasks import ALL as TASKS
from flowloom.trainers import ALL as TRAINERS

State = Literal[
    "created", "queued", "running", "stopping", "stopped", "finished", "failed", "interrupted", "damaged"
]
ACTIVE: frozenset[State] = frozenset({"queued", "running", "stopping"})
RESUMABLE: frozenset[State] = frozenset({"created", "stopped", "failed", "interrupted"})


def _fit_name(name: str) -> str:
    if RUN_NAME.fullmatch(name):
        return name
    message = "Run name: letters, digits, . _ - only (no spaces), a letter or digit first, 100 at most."
    raise PydanticCustomError("run_name", "{text}", {"text": message})


RunName = Annotated[
    str, AfterValidator(_fit_name), Field(json_schema_extra={"pattern": f"^{RUN_NAME.pattern}$"})
]
"""A valid run name, which is also the name of its directory."""
_ENDS: dict[str, State] = {"finished": "finished", "stopped": "stopped", "failed": "failed"}
_SHOWN = ("step", "epoch", "lr", "samples_per_s", "eta_s", "peak_memory_mib", "max_steps")
_NUMBERS = ("seq", "loss", "loss_smooth", *_SHOWN)
_WHOLE = frozenset({"seq", "step", "epoch", "max_steps"})
_YEAR_S = 366 * 86_400
_TAIL_BYTES = 65_536
_MOST_TAIL_BYTES = 262_144


Text = Annotated[str, BeforeValidator(lambda text: whole_text(text) if isinstance(text, str) else text)]
"""Text from files, made valid Unicode."""


class RunProblem(BaseModel):
    """Why a run ended early, and what to do."""

    error: Text
    message: Text
    hint: Text


class JobView(BaseModel):
    """A run's job on a cluster, as of the last time that the cluster's tool was asked."""

    launcher: Text = Field(examples=["slurm"])
    job_id: Text = Field(examples=["1234"])
    state: JobState = Field(description="Of the job, not of the run.")
    detail: Text = Field(examples=["PENDING (Resources)"])


class RunView(BaseModel):
    """State and progress of a run."""

    id: str = Field(description="Name of its directory.", examples=["fox-lora"])
    trainer: Text = Field(description="Name of its trainer or task.", examples=["flow"])
    kind: TaskKind = Field(default="task", description="Training, or another task.")
    state: State
    phase: Text | None = Field(None, description="Current activity of its process: loading, training, ...")
    created: float = Field(description="Seconds since 1970.")
    step: int = 0
    max_steps: int | None = None
    epoch: int | None = None
    loss: float | None = Field(None, description="Smoothed.")
    lr: float | None = None
    samples_per_s: float | None = None
    eta_s: float | None = None
    peak_memory_mib: float | None = None
    last_seq: int = Field(-1, description="Number of its newest event.")
    devices: list[Text] = []
    position: float | None = Field(None, description="Its position in the queue: lower ones start first.")
    pid: int | None = None
    checkpoint: Text | None = Field(None, description="Its newest complete checkpoint.")
    can_resume: bool = Field(False, description="True if POST resume can queue it again.")
    starts_over: bool = Field(
        False, description="True if a resume starts from the beginning because there is no checkpoint."
    )
    error: RunProblem | None = None
    note: Text | None = Field(None, description="Why it waits, other than for its turn.")
    job: JobView | None = Field(None, description="Its newest job on a cluster.")


def view_of(path: Path) -> RunView:
    """The view of the run at `path`, in state "damaged" with the reason if it cannot be read."""
    reasons: list[str] = []
    with isolate_errors(reasons.append):
        return _view(path)
    hint = "Repair or remove what is named here, or delete the run."
    problem = RunProblem(error="Damaged", message=reasons[0], hint=hint)
    try:
        created = path.stat().st_mtime
    except OSError:
        created = 0.0
    return RunView(id=path.name, trainer="unknown", state="damaged", created=created, error=problem)


def _created(content: dict[str, Any], run_json: Path) -> float:
    """The creation time in run.json or, if that is not plausible, of the file."""
    created = content.get("created")
    if is_number(created) and 0 < created < time.time() + _YEAR_S:
        return float(created)
    return run_json.stat().st_mtime


def _view(path: Path) -> RunView:
    run_dir = RunDir(path)
    content = run_dir.read_run()
    entry, record = QueueEntry.read(path), ProcessRecord.read(path)
    is_running = is_held(lock_path(path)) or run_dir.is_running()
    trainer = TRAINERS.get(content.get("trainer", "flow"))
    has_both = trainer is not None and not trainer.writes_events
    attempt_start = record.events_size if record else 0
    events = _tail(run_dir.events_jsonl, attempt_start, has_both=has_both)
    view = RunView(
        id=path.name,
        trainer=content.get("trainer", "flow"),
        kind=_kind(content.get("trainer", "flow")),
        state=_state(path, events, is_running),
        created=_created(content, run_dir.run_json),
        **_progress(events, trainer.total_steps(content["config"]) if trainer else None),
    )
    newest = next(iter(checkpoints_of(run_dir, content)), None)
    checkpoint = newest.name if newest else None
    idle, job = view.state not in ACTIVE, _job(run_dir)
    return view.model_copy(
        update={
            "devices": _devices(entry, record, content["config"], is_running=is_running),
            "position": entry.position if entry and not is_running else None,
            "pid": _pid(run_dir, record) if is_running else None,
            "checkpoint": checkpoint,
            "can_resume": view.state in RESUMABLE,
            "job": job,
            **({"phase": "pending"} if job and job.state == "pending" and is_running else {}),
            "starts_over": view.state in RESUMABLE and newest is None and view.trainer in TRAINERS,
            "error": _problem(path, view.state, events, checkpoint) if idle else None,
        }
    )


def _job(run_dir: RunDir) -> JobView | None:
    record = read_record(run_dir)
    if record is None:
        return None
    return JobView(launcher=record.launcher, job_id=record.job_id, state=record.state, detail=record.detail)


def _kind(name: Any) -> TaskKind:
    task = TRAINERS.get(name) or TASKS.get(name)
    return task.kind if task else "task"


def _state(path: Path, events: _Tail, is_running: bool) -> State:
    request = StopRequest.read(path)
    if is_running:
        return "stopping" if request else "running"
    if QueueEntry.read(path):
        return "queued"
    if events.end:
        return _ENDS[events.end["kind"]]
    if ProcessRecord.read(path) is None and events.newest is None:
        return "created"
    if request:
        return "stopped"
    ended = Exit.read(path)
    if ended is None or ended.status < 0:
        return "interrupted"
    return "finished" if ended.status == 0 else "failed"


class _Tail:
    """The newest event of each kind that determines the state."""

    def __init__(self, *, has_both: bool) -> None:
        self._has_both = has_both
        """True if step and progress events are separate, as when read from another trainer's log."""
        self.progress: dict[str, Any] | None = None
        self.newest: dict[str, Any] | None = None
        self.step: dict[str, Any] | None = None
        self.phase: dict[str, Any] | None = None
        self.end: dict[str, Any] | None = None
        self.has_begun = False
        self.is_current = False
        """True if the newest attempt has written an event."""

    def take(self, event: dict[str, Any], is_of_this_attempt: bool) -> bool:
        """Add an event, the newest ones first. Return True if no more are needed."""
        kind = event["kind"]
        self.newest = self.newest or event
        self.is_current = self.is_current or is_of_this_attempt
        if kind in _ENDS and not self.has_begun and is_of_this_attempt:
            self.end = self.end or event
        if kind in ("started", "phase", "step", "progress"):
            self.has_begun = True
        if kind == "phase":
            self.phase = self.phase or event
        if kind == "progress":
            self.progress = self.progress or event
        if kind == "step" or (kind == "progress" and not self._has_both):
            self.step = self.step or event
        if kind == "started":
            # Earlier events belong to an attempt that this one continues or abandons.
            self.step = self.step or self.progress or {"step": last_kept_step(event)}
            return True
        return self.step is not None and (self.progress is not None or not self._has_both)


def _tail(path: Path, attempt_start: int, *, has_both: bool) -> _Tail:
    """The newest events in events.jsonl; those of the newest attempt begin at `attempt_start`."""
    found = _Tail(has_both=has_both)
    for offset, line in _lines_backwards(path):
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if _is_event(event) and found.take(event, offset >= attempt_start):
            break
    return found


def _is_event(event: Any) -> TypeGuard[dict[str, Any]]:
    """True if a line is a valid event. Others are skipped, so that they do not hide a run."""
    if not is_object(event) or not isinstance(kind := event.get("kind"), str):
        return False
    is_named = kind != "phase" or isinstance(event.get("name"), str)
    return is_named and all(
        event.get(name) is None or is_number(event[name], whole=name in _WHOLE) for name in _NUMBERS
    )


def _lines_backwards(path: Path) -> Iterator[tuple[int, bytes]]:
    """The last complete lines with their offsets, newest first, within a limit of bytes."""
    try:
        file = open_plain(path)
    except FileNotFoundError:
        return
    with file:
        size = file.seek(0, os.SEEK_END)
        end, rest = size, b""
        while end > max(0, size - _MOST_TAIL_BYTES):
            start = max(0, end - _TAIL_BYTES)
            file.seek(start)
            first, *lines = (file.read(end - start) + rest).split(b"\n")
            at = start + len(first) + 1 + sum(len(line) + 1 for line in lines)
            for line in reversed(lines):
                at -= len(line) + 1
                yield at, line
            end, rest = start, first
        if end == 0 and rest:
            yield 0, rest


def _progress(events: _Tail, total: int | None) -> dict[str, Any]:
    step = events.step or {}
    newest = sorted(filter(None, (events.step, events.progress)), key=lambda event: event.get("seq", -1))
    # The newest value of each field: step and progress events have different fields.
    progress = {name: event[name] for event in newest for name in _SHOWN if event.get(name) is not None}
    return {"max_steps": total, **progress} | {
        "loss": step.get("loss_smooth", step.get("loss")),
        "phase": None if events.end or not events.is_current else _phase(events),
        "last_seq": events.newest.get("seq", -1) if events.newest else -1,
    }


def _phase(events: _Tail) -> str | None:
    if events.phase:
        return events.phase["name"]
    return "training" if events.step or events.progress else None


def _devices(
    entry: QueueEntry | None, record: ProcessRecord | None, config: Any, *, is_running: bool
) -> list[str]:
    """The devices it waits for or has (empty: any); started by hand, those of its configuration."""
    if entry and entry.any_device and not is_running:
        return []
    if assigned := entry or record:
        return list(assigned.devices)
    parallel = config.get("parallel") if is_object(config) else None
    device = parallel.get("device", "auto") if is_object(parallel) else "auto"
    return [device] if isinstance(device, str) and device != "auto" else []


def _pid(run_dir: RunDir, record: ProcessRecord | None) -> int | None:
    """PID of the run's main process."""
    if record and is_held(lock_path(run_dir.path)):
        return record.pid
    try:
        return int(read_json(run_dir.pid_json)["pid"])
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _problem(path: Path, state: State, events: _Tail, checkpoint: str | None) -> RunProblem | None:
    action = f"resume it from {checkpoint}." if checkpoint else "start it again."
    ended = Exit.read(path)
    if state == "failed" and events.end:
        end = events.end
        # Before 0.1.0 the hint was called `cure`.
        hint = end.get("hint", end.get("cure", ""))
        return RunProblem(
            error=str(end.get("error", "")), message=str(end.get("message", "")), hint=str(hint)
        )
    if state == "failed" and ended:
        message = ended.message or f"Its process ended with status {ended.status}. {_log_end(path)}"
        return RunProblem(error="ProcessFailed", message=message, hint=f"See its log, then {action}")
    if state == "interrupted":
        how = f"was killed by signal {-ended.status}" if ended else "disappeared without an exit status"
        hint = f"To continue, {action}" if checkpoint else "No checkpoint was saved: start it again."
        return RunProblem(error="Interrupted", message=f"Its process {how}.", hint=hint)
    return None


def _log_end(path: Path) -> str:
    """The end of the log."""
    try:
        file = open_plain(path / "log.txt")
    except OSError:
        return ""
    with file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 2000))
        return file.read().decode(errors="replace").strip()[-1000:]
