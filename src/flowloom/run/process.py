"""The command line of a process that works on a run directory."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from flowloom.errors import FlowloomError
from flowloom.run.directory import RunDir
from flowloom.streams import leave, settle_home

FAILED = 2
"""Exit status."""


def main(module: str, work: Callable[[RunDir], None]) -> int:
    """Call `work` with the run directory that `python -m module RUN_DIR` names; the exit status."""
    if len(sys.argv) != 2:
        sys.stderr.write(f"usage: python -m {module} RUN_DIR\n")
        return FAILED
    try:
        work(RunDir(Path(sys.argv[1])))
    except FlowloomError as error:
        sys.stderr.write(f"{error}\n{error.hint}".rstrip() + "\n")
        return FAILED
    return 0


def run_module(module: str, work: Callable[[RunDir], None]) -> None:
    """Run `main` as the whole process."""
    settle_home()
    leave(main(module, work))
