"""Events of runs whose process writes none: its supervisor reads them from the log and the checkpoints.

`LogTail` splits the log into lines, the trainer's `parse` turns a line into an event, and `LogEventWriter`
adds the rest (step numbers, start, end) and writes it. The log is a file, not a pipe, so the process
survives a killed supervisor.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from flowloom.config.secrets import usable_secrets
from flowloom.run.directory import RunDir
from flowloom.run.events import FIELDS, EventWriter
from flowloom.run.results import checkpoints_of, last_saved_step
from flowloom.server.runs.process_files import StopRequest
from flowloom.trainers.base import TrainerBackend

PROGRESS_INTERVAL_S = 0.5
SCAN_INTERVAL_S = 1.0
_CHUNK_BYTES = 1_048_576
_LINES = re.compile(rb"[\r\n]+")
_ERROR = re.compile(r"^(?:[\w.]*\.)?(\w*(?:Error|Exception|Interrupt|Exit))(?:: (.*))?$", re.MULTILINE)
_ESCAPES = re.compile(r"\x1b\[[\d;]*[A-Za-z]")
Fields = dict[str, Any]


class LogTail:
    """Reads the lines that are appended to a log from now on."""

    def __init__(self, path: Path):
        self.path = path
        self._start = self._offset = path.stat().st_size if path.exists() else 0
        self.unfinished = b""
        """The last line, which has no end yet."""

    def lines(self) -> Iterator[bytes]:
        """The new finished lines."""
        while data := self._read():
            *lines, self.unfinished = _LINES.split(self.unfinished + data)
            yield from lines

    def _read(self) -> bytes:
        with self.path.open("rb") as log:
            log.seek(self._offset)
            data = log.read(_CHUNK_BYTES)
        self._offset += len(data)
        return data

    def end(self) -> str:
        """The last text of this attempt."""
        with self.path.open("rb") as log:
            log.seek(max(self._start, self._offset - 20_000))
            return _text(log.read())


class StepCounter:
    """Turns the counts of progress bars, which restart at 0, into steps of the run."""

    def __init__(self, step: int):
        self.step = self._base = step
        self._batch = self._epoch = 0

    def start(self, step: int) -> None:
        """Set the step from which the process continues."""
        self.step = self._base = step

    def progress(self, event: Fields, batch_size: int | None, *, bar_is_epoch: bool) -> Fields:
        """The progress of the run for a count within an epoch. The run ends, as far as is known, with it."""
        if event["batch"] < self._batch:
            self._base = self.step
            self._epoch += 1
        self._batch = event["batch"]
        rate, left = event.get("batches_per_s"), event["batches"] - event["batch"]
        return {
            "kind": "progress",
            "epoch": self._epoch if bar_is_epoch else None,
            "step": self._base + event["batch"],
            "max_steps": self._base + event["batches"],
            "samples_per_s": rate * batch_size if rate and batch_size else None,
            "eta_s": left / rate if rate else None,
        }


class LogEventWriter:
    """Writes the events of one attempt of a run, from its start to its end."""

    def __init__(
        self,
        run_dir: RunDir,
        trainer: TrainerBackend,
        devices: tuple[str, ...],
        *,
        resumes: bool,
        versions: dict[str, str],
    ):
        """`versions`: of the packages that the process uses."""
        self.run_dir, self.trainer, self._versions = run_dir, trainer, versions
        self._writer = EventWriter(run_dir.events_jsonl, usable_secrets().values())
        self._batch_size = trainer.samples_per_batch(run_dir.read_run()["config"])
        self._known_checkpoints = {_identity(path) for path in checkpoints_of(run_dir)}
        self._resumed_from = last_saved_step(run_dir) if resumes and self._known_checkpoints else None
        self._devices = devices
        self._log = LogTail(run_dir.log_txt)
        self._counter = StepCounter(self._resumed_from or 0)
        self._last_step = self._counter.step
        self._bar: Fields = {}
        """The latest progress of its bar."""
        self._phase = ""
        self._has_begun = False
        self._pending: Fields | None = None
        """Progress that is not written yet: at most one event per PROGRESS_INTERVAL_S."""
        self._written: Fields | None = None
        self._written_at = self._scanned_at = 0.0
        self._saved_since_stop = self._is_ended = False
        self._hear({"kind": "phase", "name": "loading"})

    def update(self) -> None:
        """Write events for new lines of the log and new checkpoints."""
        for line in self._log.lines():
            self._hear_line(line)
        # A progress bar ends its line only when it starts the next one.
        with suppress(ValueError, LookupError, TypeError):
            bar = self._parsed(self._log.unfinished)
            if bar and bar["kind"] == "progress":
                self._hear(bar)
        if time.monotonic() - self._scanned_at > SCAN_INTERVAL_S:
            self._scanned_at = time.monotonic()
            self._find_checkpoints()
        if self._pending and time.monotonic() - self._written_at > PROGRESS_INTERVAL_S:
            self._flush()

    def must_interrupt(self) -> bool:
        """True if a process that reads no stop request must end: it has saved, or has nothing to save."""
        if "stop" in self.trainer.supported_controls or not (self.run_dir.control_dir / "stop").exists():
            self._saved_since_stop = False
            return False
        self._is_ended = self._saved_since_stop or not self._has_begun
        return self._is_ended

    def end(self, status: int) -> None:
        """Write the final event. A signal that the studio did not send leaves the run interrupted."""
        self.update()
        self._find_checkpoints()
        self._hear_line(self._log.unfinished)
        self._flush()
        if self._is_ended or StopRequest.read(self.run_dir.path):
            self._write("stopped", {})
        elif status == 0 and self._has_begun:
            self._write("finished", {})
        elif status >= 0:
            self._write("failed", self._failure(status))
        self._writer.close()

    def _hear_line(self, line: bytes) -> None:
        # No output of a process, nor half a line of it, may end the supervisor.
        with suppress(ValueError, LookupError, TypeError):
            if event := self._parsed(line):
                self._hear(event)

    def _parsed(self, line: bytes) -> Fields | None:
        event = self.trainer.parse(_text(line))
        return event if isinstance(event, dict) and event.get("kind") in FIELDS else None

    def _hear(self, event: Fields) -> None:
        kind = event["kind"]
        if kind == "phase":
            self._enter(event["name"])
        elif kind in ("step", "progress"):
            self._advance(event)
        elif kind == "saved":
            self._save(self.run_dir.path / event["dir"], event)
        elif kind == "sampled":
            self._write(kind, {**event, "dir": self._relative(Path(event["dir"]))})
        elif kind == "started":
            self._begin(event)
        elif kind == "stopped":
            self._is_ended = True
        else:
            self._write(kind, event)

    def _enter(self, phase: str) -> None:
        if phase != self._phase:
            self._phase = phase
            self._write("phase", {"name": phase})

    def _advance(self, event: Fields) -> None:
        self._begin({})
        if "batch" in event:
            event = self._bar = self._counter.progress(
                event, self._batch_size, bar_is_epoch=self.trainer.bar_is_epoch
            )
        self._counter.step = event["step"]
        if event["kind"] == "progress":
            self._pending = event
        elif event["step"] != self._last_step:
            self._last_step = event["step"]
            of_bar = {name: self._bar.get(name) for name in ("samples_per_s", "eta_s")}
            loss = event.get("loss")
            self._write("step", {"loss_smooth": loss, "loss_by_noise_level": [], **of_bar, **event})

    def _begin(self, event: Fields) -> None:
        """Write `started`, once: at the first step, or when the process reports its start before."""
        if self._has_begun:
            return
        self._has_begun = True
        known = {"versions": self._versions, "method": self.trainer.name, "resumed_from": self._resumed_from}
        started = {**known, **event, "device": self._device_name(event.get("device"))}
        self._last_step = event.get("resumed_from", self._resumed_from) or 0
        self._counter.start(self._last_step)
        self._write("started", started)
        self._enter("training")

    def _device_name(self, device: Any) -> str:
        """The studio's name of a device: the process sees only its own, counted from 0."""
        kind, _, number = str(device or "").partition(":")
        visible = [name for name in self._devices if name.startswith("cuda")]
        if kind == "cuda" and int(number or 0) < len(visible):
            return visible[int(number or 0)]
        return device or ", ".join(self._devices)

    def _find_checkpoints(self) -> None:
        for path in reversed(checkpoints_of(self.run_dir)):
            # sd-scripts writes its state next to the weights, which are reported.
            if not path.name.endswith("-state"):
                self._save(path, {})

    def _save(self, path: Path, event: Fields) -> None:
        """Write `saved` once per checkpoint: for its log line or for the file, whichever comes first."""
        if _identity(path) not in self._known_checkpoints:
            self._known_checkpoints.add(_identity(path))
            self._saved_since_stop = True
            self._write("saved", {**event, "dir": self._relative(path)})

    def _relative(self, path: Path) -> str:
        home = self.run_dir.path.absolute()
        return str(path.relative_to(home)) if path.is_relative_to(home) else str(path)

    def _flush(self) -> None:
        pending, self._pending = self._pending, None
        if pending and pending != self._written:
            self._written = pending
            self._written_at = time.monotonic()
            self._write("progress", pending)

    def _write(self, kind: str, fields: Fields) -> None:
        """Write an event with all fields of its kind; unknown ones are null."""
        if kind != "progress":
            self._flush()
        known = {"step": self._counter.step, **fields}
        self._writer.write(kind, **{name: known.get(name) for name in FIELDS[kind]})

    def _failure(self, status: int) -> Fields:
        """The last error in the log of this attempt, or the end of the log."""
        text = self._log.end()
        errors = _ERROR.findall(text)
        name, message = errors[-1] if errors else ("ProcessFailed", text[-1000:])
        if status == 0:
            name, message = (
                "NothingTrained",
                f"Its process ended without an error, and without a step. {message}",
            )
        newest = next(iter(checkpoints_of(self.run_dir)), None)
        after = f"then resume the run from {newest.name}." if newest else "then start it again."
        return {
            "error": name,
            "message": message or f"Its process ended with status {status}.",
            "hint": f"The log has the traceback. Fix the cause, {after}",
        }


def _text(data: bytes) -> str:
    return _ESCAPES.sub("", data.decode(errors="replace")).strip()


def _identity(path: Path) -> tuple[Path, int]:
    """Identify a checkpoint: one that was written again under its name is a new one."""
    return path, path.stat().st_mtime_ns if path.exists() else 0
