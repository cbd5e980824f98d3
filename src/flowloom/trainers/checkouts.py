"""Checkouts of other trainers that the owner of this machine has named: no client of the studio can.

What a client names is never run. `FLOWLOOM_TRAINERS`, or else ~/.config/flowloom/trainers.json, lists them:

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
from flowloom.run.directory import write_json


class Checkout(BaseModel):
    """Another trainer's code, and the Python that has what it needs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Path
    python: Path


_LISTS = TypeAdapter(dict[str, list[Checkout]])


def list_path(environ: Mapping[str, str] = os.environ) -> Path:
    """Where the list lies."""
    return Path(environ.get("FLOWLOOM_TRAINERS") or "~/.config/flowloom/trainers.json").expanduser()


def checkouts_of(trainer: str) -> list[Checkout]:
    """Those of a trainer, the one named last first.

    Raises:
        ConfigError: the list is damaged.
    """
    return _read(list_path()).get(trainer, [])


def name_checkout(trainer: str, path: Path, python: Path | None = None) -> Checkout:
    """Add a checkout to a trainer's list, before those that are there.

    Without `python`, the environment inside of the checkout is taken, or else the one that runs this.

    Raises:
        ConfigError: it is not there, or the list is damaged.
    """
    found = Checkout(path=path.expanduser().absolute(), python=(python or _python_of(path)).absolute())
    problems = [
        Problem(name, f"{value} does not exist.")
        for name, value in (("path", found.path), ("python", found.python))
        if not value.exists()
    ]
    if problems:
        raise ConfigError(trainer, problems)
    lists = _read(list_path())
    others = [known for known in lists.get(trainer, []) if known.path != found.path]
    lists[trainer] = [found, *others]
    list_path().parent.mkdir(parents=True, exist_ok=True)
    write_json(list_path(), _LISTS.dump_python(lists, mode="json"))
    return found


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
        message = 'write one object, such as {"flow-upstream": [{"path": "...", "python": "..."}]}.'
        raise ConfigError(str(path), [Problem("", message)]) from None
