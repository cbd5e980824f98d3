"""Refuse URLs where a path on this machine is needed.

Runs, models, JSONL files, outputs and checkpoints are local; image folders and the cache may be in a store.
`Path("s3://bucket")` is the local folder `s3:`, so a URL must be refused before it becomes a path.
"""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from flowloom.errors import Problem, RunError
from flowloom.printable import printable

if TYPE_CHECKING:
    import argparse

    Parser = TypeVar("Parser", bound=argparse.ArgumentParser)

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
"""A single letter before the colon is a Windows drive; `Path` keeps only one slash of a URL."""


def local_path_error(text: str) -> str:
    """The problem with `text` as a path on this machine; empty if there is none."""
    if not _ADDRESS.match(text):
        return ""
    return (
        f"{printable(text)} is a URL, and this must be a path on this machine: download it, or mount the "
        "bucket as a folder."
    )


def local_problem(path: str, text: str) -> list[Problem]:
    """The problem with the value `text` of the key at `path`; empty if it is a local path."""
    message = local_path_error(text)
    return [Problem(path, message)] if message else []


def require_local(path: Path | str) -> None:
    """Raises RunError if `path` is a URL, or was made from one."""
    if error_text := local_path_error(str(path)):
        raise RunError(error_text)


def local_path(text: str) -> Path:
    """The path of a command-line argument.

    Raises:
        ArgumentTypeError: it is a URL, or cannot exist.
    """
    import argparse

    if error_text := local_path_error(text) or _impossible(text):
        raise argparse.ArgumentTypeError(error_text)
    return Path(text)


def _impossible(text: str) -> str:
    """The reason why `text` cannot exist as a path; otherwise empty."""
    try:
        os.stat(Path(text).expanduser())  # noqa: PTH116 -- Path.exists hides a circle of links
    except OSError as error:
        return f"{text}: its symbolic links form a loop." if error.errno == errno.ELOOP else ""
    except RuntimeError:
        return f"{text}: there is no such user."
    return "" if text else "the path is empty."


def with_local_paths(parser: Parser) -> Parser:
    """`parser`, with every option of `type=Path` limited to local paths."""
    parser.register("type", Path, local_path)
    return parser
