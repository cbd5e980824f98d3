"""A preview of a run's files and command. Nothing is started or kept."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from flowloom.errors import FlowloomError
from flowloom.run.directory import RunDir
from flowloom.run.task import Command, Task

Files = dict[str, str]
"""Text by path in the run directory; run.json comes last."""


def preview(task: Task, config: dict[str, object], path: Path) -> tuple[Files, Command | None]:
    """Files and command of a run at `path` with `config`, whose paths must be inside the studio's folders.

    There are no files if the configuration is invalid, and no command if the
    trainer's code is not on this machine. `Task.check` says why.
    """
    with TemporaryDirectory(prefix="flowloom-preview-") as folder:
        run_dir = RunDir.create(path.name, folder)
        try:
            task.prepare(config, run_dir, "a preview")
        except (FlowloomError, ValueError):
            return {}, None
        command = _command(task, run_dir)
        moved = str(run_dir.path), str(path)
        return dict(_files(run_dir, *moved)), command and _moved(command, *moved)


def shell_line(command: Command) -> str:
    """The command for a shell."""
    words = [f"{name}={shlex.quote(value)}" for name, value in command.env.items()]
    start = " ".join([*words, shlex.join(command.argv)])
    return f"cd {shlex.quote(str(command.cwd))} && {start}" if command.cwd else start


def _command(task: Task, run_dir: RunDir) -> Command | None:
    try:
        return task.command(run_dir, resume=False)
    except FlowloomError:
        return None


def _files(run_dir: RunDir, here: str, there: str) -> Iterator[tuple[str, str]]:
    # Paths are quoted in these files, and JSON and TOML escape alike.
    written = json.dumps(there, ensure_ascii=False)[1:-1]
    paths = (path for path in run_dir.path.rglob("*") if path.is_file())
    for path in sorted(paths, key=lambda path: (path == run_dir.run_json, path)):
        yield path.relative_to(run_dir.path).as_posix(), path.read_text().replace(here, written)


def _moved(command: Command, here: str, there: str) -> Command:
    words = [word.replace(here, there) for word in command.argv]
    folder = Path(str(command.cwd).replace(here, there)) if command.cwd else None
    return replace(command, argv=words, cwd=folder)
