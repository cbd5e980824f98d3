"""The run directory: everything about a run, and the only way to communicate with its process.

    run.json                      the full configuration, versions, seed; no secrets
    events.jsonl                  its events (run/events.py)
    log.txt                       tracebacks and other text
    samples/step_00000100/        previews and samples.json
    checkpoints/step_00000100/    weights, and state/ for exact resume
    control/                      touch `stop`, `checkpoint` or `sample` here: done at the next step
    pid.json                      the running process, which holds a lock on it
    mirror.json                   the copy in a bucket, if there is one (run/mirror)

Files that take time to write are written as `*.tmp` and renamed, so that a file is complete or absent.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import socket
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ValidationError

import flowloom
from flowloom.config.local_paths import require_local
from flowloom.config.run import RunConfig
from flowloom.errors import DamagedError, RunError
from flowloom.files import open_plain, read_json, write_json
from flowloom.json_types import is_object
from flowloom.locks import try_lock

Control = Literal["stop", "checkpoint", "sample"]
Config = TypeVar("Config", bound=BaseModel)

RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_STEP = re.compile(r"step_\d{8}")
ABANDONED = "abandoned"
"""A file next to previews of a killed attempt, after the run has restarted from an earlier step."""
_RECORDED = (
    "flowloom",
    "torch",
    "diffusers",
    "transformers",
    "peft",
    "lycoris-lora",
    "torchao",
    "bitsandbytes",
)


class RunDir:
    """The directory at `path`. Creating the object touches no files."""

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self.run_json = self.path / "run.json"
        self.events_jsonl = self.path / "events.jsonl"
        self.log_txt = self.path / "log.txt"
        self.pid_json = self.path / "pid.json"
        self.control_dir = self.path / "control"
        self._held: tuple[int, int] | None = None

    @classmethod
    def create(cls, name: str, runs_dir: Path | str) -> RunDir:
        """Create an empty run directory `runs_dir/name`.

        Raises:
            RunError: the name is not safe in a path, or the run exists.
        """
        if not RUN_NAME.fullmatch(name):
            raise RunError(
                f"{name!r} is not a valid run name: use at most 100 letters, digits, '.', '_' and '-', and "
                "start with a letter or digit."
            )
        require_local(runs_dir)
        run_dir = cls(Path(runs_dir) / name)
        run_dir.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            run_dir.path.mkdir()
        except FileExistsError:
            raise RunError(
                f"{run_dir.path} exists already: choose another --name, or resume it: "
                f"flowloom resume {run_dir.path}"
            ) from None
        for folder in (run_dir.control_dir, run_dir.path / "samples", run_dir.path / "checkpoints"):
            folder.mkdir()
        return run_dir

    @classmethod
    def open(cls, path: Path | str) -> RunDir:
        """The run directory at `path`.

        Raises:
            RunError: there is none.
        """
        require_local(path)
        run_dir = cls(path)
        if not run_dir.run_json.is_file():
            near = sorted(entry.parent.name for entry in run_dir.path.parent.glob("*/run.json"))
            beside = f" In its folder: {', '.join(near[-5:])}." if near else ""
            if not run_dir.path.exists():
                raise RunError(f"{run_dir.path}: no such file or directory.{beside}")
            raise RunError(f"{run_dir.path} is not a run directory: it has no run.json.{beside}")
        return run_dir

    @classmethod
    def around(cls, path: Path) -> RunDir | None:
        """The run that contains `path`, or that is at `path`; None if there is none."""
        folders = (path, *path.absolute().parents)
        return next((cls(folder) for folder in folders if (folder / "run.json").is_file()), None)

    def samples_dir(self, step: int) -> Path:
        """The folder of the previews of `step`."""
        return self.path / "samples" / f"step_{step:08d}"

    def abandon_samples(self, after: int) -> None:
        """Mark the previews of steps beyond `after` as abandoned, because the run restarts from there.

        They stay on the disk until they are generated again, but are no longer listed.
        """
        for folder in (self.path / "samples").glob("step_*"):
            if _STEP.fullmatch(folder.name) and folder.is_dir() and step_of(folder) > after:
                (folder / ABANDONED).touch()

    def checkpoint_dir(self, step: int) -> Path:
        """The folder of the checkpoint of `step`."""
        return self.path / "checkpoints" / checkpoint_name(step)

    def checkpoints(self) -> list[Path]:
        """The complete checkpoints, oldest first."""
        folders = (self.path / "checkpoints").glob("step_*")
        return sorted(folder for folder in folders if _STEP.fullmatch(folder.name) and folder.is_dir())

    def latest_checkpoint(self) -> Path | None:
        """The newest complete checkpoint."""
        return next(reversed(self.checkpoints()), None)

    def write_run(
        self,
        config: BaseModel,
        source: str,
        notes: list[str] | None = None,
        *,
        trainer: str = "flow",
        folders: Mapping[str, Mapping[str, float]] | None = None,
    ) -> None:
        """Write `run.json`: the configuration, its source, and the versions of packages.

        `folders`: folders outside the run directory that get its checkpoints and samples, with the time of
        their newest file before the run (`results.newest_file_time`).
        """
        seed = {"seed": config.training.master_seed} if isinstance(config, RunConfig) else {}
        content = {
            "trainer": trainer,
            "config": config.model_dump(mode="json"),
            **seed,
            "source": source,
            "notes": notes or [],
            "versions": versions(),
            "created": round(time.time(), 3),
            **({"folders": folders} if folders else {}),
        }
        write_json(self.run_json, content)

    def read_run(self) -> dict[str, Any]:
        """The content of `run.json`.

        Raises:
            RunError: it is missing or damaged.
        """
        try:
            content = read_json(self.run_json)
        except FileNotFoundError:
            content = self.open(self.path)  # raises an error that says what is there
        except OSError as error:
            raise DamagedError(f"{self.run_json}: {error.strerror}.") from error
        except ValueError as error:
            raise DamagedError(f"{self.run_json}: not valid JSON ({error}).") from error
        if not is_object(content) or not is_object(content.get("config")):
            raise DamagedError(f"{self.run_json}: has no configuration.")
        return content

    def read_config(self) -> RunConfig:
        """The configuration in `run.json` of a run of our engine.

        Raises:
            RunError: as `read_config_as`.
        """
        return self.read_config_as(RunConfig)

    def read_config_as(self, kind: type[Config]) -> Config:
        """The configuration in `run.json`, validated by the schema `kind`.

        Raises:
            RunError: it is missing, damaged, or was written by a version with another schema.
        """
        content = self.read_run()
        try:
            return kind.model_validate(content["config"])
        except ValidationError as error:
            made_with = content.get("versions", {}).get("flowloom", "an unknown version")
            raise RunError(
                f"{self.run_json}: written by version {made_with}, and not valid in this one. {error}"
            ) from error

    def request(self, control: Control) -> None:
        """Request a stop, a checkpoint or previews at the next step."""
        self.control_dir.mkdir(exist_ok=True)
        (self.control_dir / control).touch()

    def take_control(self, control: Control) -> bool:
        """True if `control` was requested since the last call; clears the request."""
        try:
            (self.control_dir / control).unlink()
        except FileNotFoundError:
            return False
        return True

    @contextmanager
    def locked(self) -> Generator[None]:
        """Hold the directory as its only process, and delete leftovers of a killed one.

        The system releases the lock when the process ends, however that happens.

        Raises:
            RunError: another process holds it.
        """
        with self.pid_json.open("a+") as file:
            if not try_lock(file, patience_s=1.0):
                raise RunError(f"{self.path} is in use by process {self._pid()}: stop that process first.")
            file.truncate(0)
            json.dump({"pid": os.getpid(), "host": socket.gethostname(), "started": time.time()}, file)
            file.flush()
            self._clear_leftovers()
            self._held = _identity(os.fstat(file.fileno()))
            yield

    def require_in_place(self) -> None:
        """Check that the directory is still the one that `locked` holds.

        Raises:
            RunError: it was deleted, moved or replaced, or its disk is gone.
        """
        try:
            is_here = self._held is None or _identity(self.pid_json.stat()) == self._held
        except OSError as error:
            raise RunError(
                f"{self.path}: the run directory is gone ({error.strerror}): it was deleted or moved, or its "
                "disk was unmounted. Training stops, and nothing more is saved."
            ) from error
        if not is_here:
            raise RunError(
                f"{self.path}: another run directory is at this path now. Training stops, and nothing "
                "more is saved."
            )

    def is_running(self) -> bool:
        """True if a process holds the directory.

        Raises:
            OSError: unknown, because pid.json is not a file or cannot be read.
        """
        try:
            file = open_plain(self.pid_json)
        except FileNotFoundError:
            return False
        with file:
            return not try_lock(file, shared=True)

    def _pid(self) -> str:
        try:
            who = json.loads(self.pid_json.read_text())
        except ValueError:
            return "(unknown)"
        return f"{who['pid']} on {who['host']}"

    def _clear_leftovers(self) -> None:
        for folder in (self.path, self.path / "checkpoints", self.path / "samples"):
            for leftover in folder.glob("*.tmp"):
                if leftover.is_dir():
                    shutil.rmtree(leftover)
                else:
                    leftover.unlink()
        # Requests to an earlier process are not meant for this one.
        for request in self.control_dir.glob("*"):
            request.unlink()


def _identity(file: os.stat_result) -> tuple[int, int]:
    return file.st_dev, file.st_ino


def checkpoint_name(step: int) -> str:
    """Folder name of a checkpoint of our engine."""
    return f"step_{step:08d}"


def step_of(folder: Path) -> int:
    """The step of a folder with a checkpoint or previews of our engine."""
    return int(folder.name.removeprefix("step_"))


def default_name(stem: str) -> str:
    """A generated run name: `stem` and the time."""
    safe = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._") or "run"
    return f"{safe[:80]}-{time.strftime('%Y%m%d-%H%M%S')}"


def versions() -> dict[str, str]:
    """Versions of Python and of packages, without importing them."""
    found = {"flowloom": flowloom.__version__, "python": platform.python_version()}
    for package in _RECORDED:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
