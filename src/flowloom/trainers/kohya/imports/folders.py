"""Folders of images as datasets: by sd-scripts' rule `train_data_dir` holds folders named REPEATS_NAME."""

from __future__ import annotations

import re
from typing import Any

from flowloom.trainers.kohya.imports.result import Given, Imported, Look

_SEPARATOR = re.compile(r"[/\\]")
Folder = dict[str, Any]


def repeats_of(name: str) -> tuple[int, str] | None:
    """Repeats and class tokens in a folder name such as `10_a fox`; None if sd-scripts ignores it."""
    number, _, tokens = name.partition("_")
    try:
        repeats = int(number)
    except ValueError:
        return None
    return (repeats, tokens) if repeats >= 1 else None


def subsets_of(given: Given, look: Look, found: Imported) -> list[Folder]:
    """The subsets in `train_data_dir` or `reg_data_dir`; reports them in `found`."""
    path = str(given.value)
    regular = {"is_reg": True} if given.key == "reg_data_dir" else {}
    names = look(path)
    ignored = [name for name in sorted(names or []) if not repeats_of(name)]
    subsets = [
        {"image_dir": _join(path, name), "num_repeats": folder[0], "class_tokens": folder[1], **regular}
        for name in sorted(names or [])
        if (folder := repeats_of(name))
    ]
    if subsets:
        listed = _listed(
            [f"{_last(str(subset['image_dir']))} ({subset['num_repeats']} repeats)" for subset in subsets]
        )
        rest = f"; sd-scripts does not train, by their names: {_listed(ignored)}" * bool(ignored)
        found.translated[given.name] = f"{len(subsets)} subset{'s' * (len(subsets) > 1)}: {listed}{rest}"
        return subsets
    return [_itself(given, path, names, found) | regular]


def _itself(given: Given, path: str, names: list[str] | None, found: Imported) -> Folder:
    """The folder itself, if it has no folders for sd-scripts or cannot be read."""
    own = repeats_of(_last(path))
    if own:
        message = f"the folder itself as a subset with {own[0]} repeats; sd-scripts takes the folder above it"
        found.translated[given.name] = message
        return {"image_dir": path, "num_repeats": own[0], "class_tokens": own[1]}
    if names is None:
        why = "cannot be read here; sd-scripts trains the folders in it that are named REPEATS_NAME: add them"
    else:
        why = (
            "holds no folder named REPEATS_NAME, and sd-scripts trains only those; it is taken with 1 repeat"
        )
    found.leave(given.name, given.value, why)
    return {"image_dir": path}


def _listed(names: list[str]) -> str:
    return ", ".join(names[:5]) + f" and {len(names) - 5} more" * (len(names) > 5)


def _last(path: str) -> str:
    return _SEPARATOR.split(path.rstrip("/\\"))[-1]


def _join(path: str, name: str) -> str:
    mark = "\\" if "\\" in path and "/" not in path else "/"
    return f"{path.rstrip('/' + chr(92))}{mark}{name}"
