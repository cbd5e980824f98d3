"""Process start and end: home directory, standard output and error."""

from __future__ import annotations

import atexit
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import NoReturn, TextIO


def settle_home() -> None:
    """Set HOME to / if there is none, as in a container of an unknown user; Docker does the same."""
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = "/"


def open_streams() -> None:
    """Make standard output and error writable: closed ones discard output, odd locales lose no line."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115 -- stays open
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def silence(stream: TextIO) -> None:
    """Discard unwritten output of `stream`, which the interpreter would try to write again at exit."""
    with suppress(OSError), open(os.devnull, "w") as nowhere:  # noqa: PTH123 -- a test's stream has no number
        os.dup2(nowhere.fileno(), stream.fileno())


def system_error_text(error: OSError) -> str:
    """The system's error and its file, in one line."""
    reason = (error.strerror or str(error) or type(error).__name__).rstrip(".")
    if error.filename is None:
        silence(sys.stdout)  # most often it is what cannot be written to
        return f"{reason}."
    where = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else error.filename
    return f"{where}: {reason}."


def leave(status: int) -> NoReturn:
    """End the process with `status`.

    After reads from object stores, without the interpreter's shutdown: a thread of their client that drops a
    response during it would abort the process (SIGABRT instead of the status).
    """
    if "obstore" not in sys.modules:
        sys.exit(status)
    atexit._run_exitfuncs()  # pyright: ignore[reportPrivateUsage] -- os._exit does not run them
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)
