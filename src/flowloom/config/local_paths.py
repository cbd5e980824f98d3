"""The rule for paths that must be on this machine: which texts name another place, and what to say of them.

Runs, models, JSONL files, outputs and checkpoints are local; image folders and the cache may be in a store.
`Path("s3://bucket")` is the local folder `s3:`, so an address must be refused before it becomes a path.
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
"""One letter before the colon is a drive of Windows; `Path` leaves one slash of an address."""


def local_trouble(text: str) -> str:
    """What is wrong with `text` as a path on this machine; empty where it is one."""
    if not _ADDRESS.match(text):
        return ""
    return (
        f"{printable(text)} is an address, and this must be a path on this machine: download it, or mount "
        "the bucket as a folder."
    )


def local_problem(path: str, text: str) -> list[Problem]:
    """The problem with the value `text` of the key at `path`; empty where it is a path on this machine."""
    trouble = local_trouble(text)
    return [Problem(path, trouble)] if trouble else []


def require_local(path: Path | str) -> None:
    """Raises RunError where `path` is an address, or was made of one."""
    if trouble := local_trouble(str(path)):
        raise RunError(trouble)


def local_path(text: str) -> Path:
    """The path that a word of the command line names.

    Raises:
        ArgumentTypeError: it is an address, or nothing can be there.
    """
    import argparse

    if trouble := local_trouble(text) or _impossible(text):
        raise argparse.ArgumentTypeError(trouble)
    return Path(text)


def _impossible(text: str) -> str:
    """Why nothing can be at `text`; empty where something is or could be."""
    try:
        os.stat(Path(text).expanduser())  # noqa: PTH116 -- Path.exists hides a circle of links
    except OSError as error:
        return f"{text}: its symbolic links go in a circle." if error.errno == errno.ELOOP else ""
    except RuntimeError:
        return f"{text}: there is no such user."
    return "" if text else "the path is empty."


def with_local_paths(parser: Parser) -> Parser:
    """`parser`, of which every option with `type=Path` takes paths on this machine alone."""
    parser.register("type", Path, local_path)
    return parser
