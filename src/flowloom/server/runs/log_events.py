"""Events of runs whose process writes none: its supervisor reads the log as it grows, and what was saved.

The trainer's `parse` says what a line means; what lines do not tell (numbers of steps, the beginning, the
end) is added here. The log is a file and no pipe: a process whose supervisor was killed trains on.
"""

from __future__ import annotations

import re
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from flowloom.config.secrets import usable_secrets
from flowloom.run.directory import RunDir
from flowloom.run.events import FIELDS, EventWriter
from flowloom.run.results import checkpoints_of, last_saved_step
from flowloom.server.runs.process_files import StopRequest
from flowloom.trainers.base import TrainerBackend

SECONDS_BETWEEN_REPORTS = 0.5
SECONDS_BETWEEN_LOOKS = 1.0
_CHUNK_BYTES = 1_048_576
_LINES = re.compile(rb"[\r\n]+")
_ERROR = re.compile(r"^(?:[\w.]*\.)?(\w*(?:Error|Exception|Interrupt|Exit))(?:: (.*))?$", re.MULTILINE)
_ESCAPES = re.compile(r"\x1b\[[\d;]*[A-Za-z]")
Fields = dict[str, Any]


class LogEventWriter:
    """Writes a run's events, from the beginning of one sitting to its end."""

    def __init__(
        self,
        run_dir: RunDir,
        trainer: TrainerBackend,
        devices: tuple[str, ...],
        *,
        resumes: bool,
        versions: dict[str, str],
    ):
        """`versions` are of the packages that the process uses."""
        self.run_dir, self.trainer, self._versions = run_dir, trainer, versions
        self._writer = EventWriter(run_dir.events_jsonl, usable_secrets().values())
        self._batch_size = trainer.samples_per_batch(run_dir.read_run()["config"])
        self._known = {_identity(path) for path in checkpoints_of(run_dir)}
        self._from = last_saved_step(run_dir) if resumes and self._known else None
        self._devices = devices
        self._step = self._base = self._last = self._from or 0
        self._batch = self._epoch = 0
        self._bar: Fields = {}
        """What its progress bar told last."""
        self._phase = ""
        self._has_begun = False
        self._waiting: Fields | None = None
        self._said: Fields | None = None
        self._said_at = self._looked_at = 0.0
        self._offset = run_dir.log_txt.stat().st_size if run_dir.log_txt.exists() else 0
        self._log_begins = self._offset
        self._rest = b""
        self._saved_since_stop = self._is_ended = False
        self._hear({"kind": "phase", "name": "loading"})

    def update(self) -> None:
        """Take in what is new: lines of the log, checkpoints."""
        while self._read():
            continue
        # A progress bar ends its line only when it begins the next one.
        with suppress(ValueError, LookupError, TypeError):
            bar = self._meaning(self._rest)
            if bar and bar["kind"] == "progress":
                self._hear(bar)
        if time.monotonic() - self._looked_at > SECONDS_BETWEEN_LOOKS:
            self._looked_at = time.monotonic()
            self._find_checkpoints()
        if self._waiting and time.monotonic() - self._said_at > SECONDS_BETWEEN_REPORTS:
            self._flush()

    def must_interrupt(self) -> bool:
        """Whether to end a process that obeys no `stop` itself: once it has saved, or has nothing to save."""
        if "stop" in self.trainer.supported_controls or not (self.run_dir.control_dir / "stop").exists():
            self._saved_since_stop = False
            return False
        self._is_ended = self._saved_since_stop or not self._has_begun
        return self._is_ended

    def end(self, status: int) -> None:
        """The process ended; a signal that nobody sent here leaves the run interrupted."""
        self.update()
        self._find_checkpoints()
        self._hear_line(self._rest)
        self._flush()
        if self._is_ended or StopRequest.read(self.run_dir.path):
            self._write("stopped", {})
        elif status == 0 and self._has_begun:
            self._write("finished", {})
        elif status >= 0:
            self._write("failed", self._failure(status))
        self._writer.close()

    def _read(self) -> bool:
        """Whether there were new bytes in the log."""
        with self.run_dir.log_txt.open("rb") as log:
            log.seek(self._offset)
            data = log.read(_CHUNK_BYTES)
        self._offset += len(data)
        *lines, self._rest = _LINES.split(self._rest + data)
        for line in lines:
            self._hear_line(line)
        return bool(data)

    def _hear_line(self, line: bytes) -> None:
        # Whatever a process prints, also half a line of it, ends no supervisor.
        with suppress(ValueError, LookupError, TypeError):
            if event := self._meaning(line):
                self._hear(event)

    def _meaning(self, line: bytes) -> Fields | None:
        text = _ESCAPES.sub("", line.decode(errors="replace")).strip()
        event = self.trainer.parse(text)
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
            event = self._bar = self._counted_on(event)
        self._step = event["step"]
        if event["kind"] == "progress":
            self._waiting = event
        elif self._step != self._last:
            self._last = self._step
            of_bar = {name: self._bar.get(name) for name in ("samples_per_s", "eta_s")}
            loss = event.get("loss")
            self._write("step", {"loss_smooth": loss, "loss_by_noise_level": [], **of_bar, **event})

    def _begin(self, event: Fields) -> None:
        """The first update, or a process that says before it that it begins, and from where."""
        if self._has_begun:
            return
        self._has_begun = True
        known = {"versions": self._versions, "method": self.trainer.name}
        told = {**known, "resumed_from": self._from, **event}
        told["device"] = self._known_as(event.get("device"))
        self._base = self._step = self._last = told["resumed_from"] or 0
        self._write("started", told)
        self._enter("training")

    def _known_as(self, device: Any) -> str:
        """The studio's name of a device: the process sees those that it was given, and counts them from 0."""
        kind, _, number = str(device or "").partition(":")
        here = [name for name in self._devices if name.startswith("cuda")]
        if kind == "cuda" and int(number or 0) < len(here):
            return here[int(number or 0)]
        return device or ", ".join(self._devices)

    def _counted_on(self, event: Fields) -> Fields:
        """A count within an epoch, as a step of the run; it ends, as far as is known, with the epoch."""
        if event["batch"] < self._batch:
            self._base = self._step
            self._epoch += 1
        self._batch = event["batch"]
        rate, left, size = event.get("batches_per_s"), event["batches"] - event["batch"], self._batch_size
        return {
            "kind": "progress",
            "epoch": self._epoch if self.trainer.bar_is_epoch else None,
            "step": self._base + event["batch"],
            "max_steps": self._base + event["batches"],
            "samples_per_s": rate * size if rate and size else None,
            "eta_s": left / rate if rate else None,
        }

    def _find_checkpoints(self) -> None:
        for path in reversed(checkpoints_of(self.run_dir)):
            # What sd-scripts resumes from lies beside the weights that are told.
            if not path.name.endswith("-state"):
                self._save(path, {})

    def _save(self, path: Path, event: Fields) -> None:
        """Told once, by a line or by the file itself, whichever comes first."""
        if _identity(path) not in self._known:
            self._known.add(_identity(path))
            self._saved_since_stop = True
            self._write("saved", {**event, "dir": self._relative(path)})

    def _relative(self, path: Path) -> str:
        home = self.run_dir.path.absolute()
        return str(path.relative_to(home)) if path.is_relative_to(home) else str(path)

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting and waiting != self._said:
            self._said = waiting
            self._said_at = time.monotonic()
            self._write("progress", waiting)

    def _write(self, kind: str, fields: Fields) -> None:
        """Write what is known of an event; what is not is null."""
        if kind != "progress":
            self._flush()
        known = {"step": self._step, **fields}
        self._writer.write(kind, **{name: known.get(name) for name in FIELDS[kind]})

    def _failure(self, status: int) -> Fields:
        """The last error that the log of this sitting names, or its last words."""
        with self.run_dir.log_txt.open("rb") as log:
            log.seek(max(self._log_begins, self._offset - 20_000))
            text = _ESCAPES.sub("", log.read().decode(errors="replace")).strip()
        errors = _ERROR.findall(text)
        name, message = errors[-1] if errors else ("ProcessFailed", text[-1000:])
        if status == 0:
            name, message = (
                "NothingTrained",
                f"Its process ended without an error, and without a step. {message}",
            )
        newest = next(iter(checkpoints_of(self.run_dir)), None)
        after = f"{newest.name} is whole: resume it to go on from there." if newest else "start it again."
        return {
            "error": name,
            "message": message or f"Its process ended with status {status}.",
            "cure": f"The log has the traceback. Mend the cause; {after}",
        }


def _identity(path: Path) -> tuple[Path, int]:
    """Of a checkpoint: one that is written anew under its name is another one."""
    return path, path.stat().st_mtime_ns if path.exists() else 0
