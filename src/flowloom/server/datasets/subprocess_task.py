"""Runs small dataset operations in a separate process and returns the result at once."""

from __future__ import annotations

import json
import secrets
import shutil
import subprocess
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flowloom.config.secrets import redact, usable_secrets
from flowloom.run.directory import RunDir
from flowloom.run.task import Task
from flowloom.server.endpoints import environ_for_processes
from flowloom.server.problems import Invalid, ServiceError, Unwritable

PATIENCE_S = 60.0


class TakesLong(ServiceError):
    status, code, title = 409, "takes-long", "That takes longer than an answer may."


class Failed(ServiceError):
    status, code, title = 409, "failed", "That could not be done."


def answer_of(task: Task, config: dict[str, Any], state_dir: Path) -> Any:
    """What `task` finds, without a place in the queue or the list of runs.

    Raises:
        Invalid: the configuration is wrong.
        Failed: with what went wrong.
        TakesLong: it was not over within PATIENCE_S.
    """
    if problems := task.check(config):
        raise Invalid.of(problems)
    runs_dir = state_dir / "answers"
    run_dir = RunDir.create(secrets.token_hex(8), runs_dir)
    try:
        task.prepare(config, run_dir, "an answer")
        done = run_process(task.command(run_dir, resume=False).argv, hint="Ask with as_run: true.")
        result = run_dir.path / "result.json"
        if result.exists():
            return json.loads(result.read_text())
        raise Failed(last_words(done.stderr), "Mend the cause, and ask again.")
    finally:
        shutil.rmtree(run_dir.path, ignore_errors=True)


def run_process(
    words: list[str],
    told: str = "",
    hint: str = "Ask again when the machine has less to do.",
    *,
    needs_secrets: bool = False,
) -> subprocess.CompletedProcess[str]:
    """Run one of our own programs, which gets the secrets by its environment, to its end.

    Raises:
        TakesLong: it was not over within PATIENCE_S.
    """
    environ = environ_for_processes(needs_secrets=needs_secrets)
    command = [sys.executable, "-m", *words] if words[0] != sys.executable else words
    try:
        return subprocess.run(
            command, input=told, env=environ, capture_output=True, text=True, check=False, timeout=PATIENCE_S
        )
    except subprocess.TimeoutExpired:
        raise TakesLong(f"It was not over after {PATIENCE_S:g} s.", hint) from None
    except OSError as error:
        raise Unwritable(
            f"No process can be started: {error.strerror}.", "Look at the machine's limits."
        ) from error


@contextmanager
def running(module: str, told: str) -> Generator[Iterator[str]]:
    """The lines that one of our own programs writes, as they come.

    Raises:
        Failed: with what it said last, where it did not end well.
    """
    with subprocess.Popen(
        [sys.executable, "-m", module],
        env=environ_for_processes(needs_secrets=True),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin
        assert process.stdout
        assert process.stderr
        try:
            process.stdin.write(told)
            process.stdin.close()
            yield iter(process.stdout)
            if process.wait():
                raise Failed(last_words(process.stderr.read()), "Mend the cause, and ask again.")
        finally:
            process.kill()


def last_words(stderr: str) -> str:
    """What a program said last, without secrets."""
    lines = [line for line in redact(stderr, usable_secrets().values()).strip().splitlines() if line.strip()]
    return lines[-1][:2000] if lines else "It ended without a word."
