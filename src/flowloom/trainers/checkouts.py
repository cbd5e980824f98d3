"""Checkouts of other trainers that the owner of this machine has registered.

A client of the studio cannot add one, so it cannot run its own code. They are listed in the file
`FLOWLOOM_TRAINERS`, by default ~/.config/flowloom/trainers.json:

    {"flow-upstream": [{"path": "flow", "python": "flow/.venv/bin/python"}]}
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from flowloom.errors import ConfigError, Problem
from flowloom.files import write_json


class Checkout(BaseModel):
    """Another trainer's code and the Python with its packages."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Path
    python: Path


_LISTS = TypeAdapter(dict[str, list[Checkout]])


def list_path(environ: Mapping[str, str] = os.environ) -> Path:
    """Path of the list."""
    return Path(environ.get("FLOWLOOM_TRAINERS") or "~/.config/flowloom/trainers.json").expanduser()


def checkouts_of(trainer: str) -> list[Checkout]:
    """The checkouts of a trainer, newest first.

    Raises:
        ConfigError: the list is damaged.
    """
    return _read(list_path()).get(trainer, [])


def add_checkout(trainer: str, path: Path, python: Path | None = None) -> Checkout:
    """Add a checkout to the front of a trainer's list.

    Without `python`, the virtual environment in the checkout is used, or else the running Python.

    Raises:
        ConfigError: a path does not exist, or the list is damaged.
    """
    checkout = Checkout(path=path.expanduser().absolute(), python=(python or _python_of(path)).absolute())
    problems = [
        Problem(name, f"{value} does not exist.", "not-found")
        for name, value in (("path", checkout.path), ("python", checkout.python))
        if not value.exists()
    ]
    if problems:
        raise ConfigError(trainer, problems)
    lists = _read(list_path())
    others = [other for other in lists.get(trainer, []) if other.path != checkout.path]
    lists[trainer] = [checkout, *others]
    list_path().parent.mkdir(parents=True, exist_ok=True)
    write_json(list_path(), _LISTS.dump_python(lists, mode="json"))
    return checkout


def _python_of(path: Path) -> Path:
    inside = (path.expanduser() / name / "bin" / "python" for name in (".venv", "venv"))
    return next((python for python in inside if python.exists()), Path(sys.executable))


def _read(path: Path) -> dict[str, list[Checkout]]:
    try:
        content: Any = json.loads(path.read_text())
        return _LISTS.validate_python(content)
    except FileNotFoundError:
        return {}
    except (ValueError, ValidationError):
        message = 'write a JSON object such as {"flow-upstream": [{"path": "...", "python": "..."}]}.'
        raise ConfigError(str(path), [Problem("", message)]) from None
