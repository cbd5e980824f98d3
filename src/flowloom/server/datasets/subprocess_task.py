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
    status, code, title = 409, "takes-long", "The request took too long."


class Failed(ServiceError):
    status, code, title = 409, "failed", "The request failed."


def result_of(task: Task, config: dict[str, Any], state_dir: Path) -> Any:
    """The result of `task`, run at once and not listed as a run.

    Raises:
        Invalid: the configuration is invalid.
        Failed: it failed, with the reason.
        TakesLong: it took longer than PATIENCE_S.
    """
    if problems := task.check(config):
        raise Invalid.of(problems)
    runs_dir = state_dir / "answers"
    run_dir = RunDir.create(secrets.token_hex(8), runs_dir)
    try:
        task.prepare(config, run_dir, "a request")
        done = run_process(task.command(run_dir, resume=False).argv, hint="Send as_run: true.")
        result = run_dir.path / "result.json"
        if result.exists():
            return json.loads(result.read_text())
        raise Failed(last_line(done.stderr), "Fix the cause, then try again.")
    finally:
        shutil.rmtree(run_dir.path, ignore_errors=True)


def run_process(
    arguments: list[str],
    stdin: str = "",
    hint: str = "Try again when the machine is less busy.",
    *,
    needs_secrets: bool = False,
) -> subprocess.CompletedProcess[str]:
    """Run one of our modules, or a whole command, to its end.

    Args:
        needs_secrets: add the secrets to its environment.

    Raises:
        TakesLong: it took longer than PATIENCE_S.
    """
    environ = environ_for_processes(needs_secrets=needs_secrets)
    command = arguments if arguments[0] == sys.executable else [sys.executable, "-m", *arguments]
    try:
        return subprocess.run(
            command, input=stdin, env=environ, capture_output=True, text=True, check=False, timeout=PATIENCE_S
        )
    except subprocess.TimeoutExpired:
        raise TakesLong(f"It took more than {PATIENCE_S:g} s.", hint) from None
    except OSError as error:
        raise Unwritable(
            f"No process can be started: {error.strerror}.",
            "Check the machine's limits of processes and memory.",
        ) from error


@contextmanager
def running(module: str, stdin: str) -> Generator[Iterator[str]]:
    """The output lines of one of our modules, as they are written.

    Raises:
        Failed: it failed, with its last message.
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
            process.stdin.write(stdin)
            process.stdin.close()
            yield iter(process.stdout)
            if process.wait():
                raise Failed(last_line(process.stderr.read()), "Fix the cause, then try again.")
        finally:
            process.kill()


def last_line(stderr: str) -> str:
    """The last line of a program's messages, without secrets."""
    lines = [line for line in redact(stderr, usable_secrets().values()).strip().splitlines() if line.strip()]
    return lines[-1][:2000] if lines else "It exited without a message."
