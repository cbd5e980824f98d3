"""What a configuration would become: its run's files and its command. Nothing is started, nothing is kept."""

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
"""Text by name, below the run's directory; run.json is the last one."""


def preview(task: Task, config: dict[str, object], path: Path) -> tuple[Files, Command | None]:
    """What the run at `path` would hold and start; `config` leads nowhere out of the studio's folders.

    What cannot be told is left out: all files of a configuration that cannot be read, the command where the
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
    """A command as one types it."""
    words = [f"{name}={shlex.quote(value)}" for name, value in command.env.items()]
    start = " ".join([*words, shlex.join(command.argv)])
    return f"cd {shlex.quote(str(command.cwd))} && {start}" if command.cwd else start


def _command(task: Task, run_dir: RunDir) -> Command | None:
    try:
        return task.command(run_dir, resume=False)
    except FlowloomError:
        return None


def _files(run_dir: RunDir, here: str, there: str) -> Iterator[tuple[str, str]]:
    # Within quotes; JSON and TOML escape alike.
    written = json.dumps(there, ensure_ascii=False)[1:-1]
    paths = (path for path in run_dir.path.rglob("*") if path.is_file())
    for path in sorted(paths, key=lambda path: (path == run_dir.run_json, path)):
        yield path.relative_to(run_dir.path).as_posix(), path.read_text().replace(here, written)


def _moved(command: Command, here: str, there: str) -> Command:
    words = [word.replace(here, there) for word in command.argv]
    folder = Path(str(command.cwd).replace(here, there)) if command.cwd else None
    return replace(command, argv=words, cwd=folder)
