"""Results of a run: checkpoints and previews of our engine and of other trainers.

Other trainers may write outside the run directory. `folders` in run.json lists these folders with the time of
their newest file before the run: only newer files count. They write under the final name, so an incomplete
file is recognised by its end.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from flowloom.errors import RunError
from flowloom.image_suffixes import CLIP_SUFFIXES, COMMON_SUFFIXES, POSTER
from flowloom.json_types import is_object
from flowloom.run.directory import ABANDONED, RunDir
from flowloom.run.events import read_events

Kind = Literal["checkpoints", "samples"]
WEIGHTS = {".safetensors", ".sft", ".pth", ".pt", ".ckpt"}
_OWN = {"checkpoints": ("checkpoints",), "samples": ("samples", "checkpoints/sample")}
_PASSING = re.compile(r"\.tmp$|_temp$|^\.")
_STEP = re.compile(r"step_\d{8}")
_MAX_HEADER = 100_000_000
"""Bytes; the maximum of the format."""


def result_folders(run_dir: RunDir, kind: Kind, content: dict[str, Any] | None = None) -> list[Path]:
    """Folders with results of a run, its own first; `content` is its run.json, if already read."""
    return list(_folders(run_dir, kind, _content(run_dir, content)))


def newest_file_time(folder: str) -> dict[str, float]:
    """The entry of a user's folder in run.json, so that its present files do not count as results."""
    times = (entry.stat().st_mtime for entry in Path(folder).glob("**/*") if entry.is_file())
    return {folder: max(times, default=0.0)} if folder else {}


def checkpoints_of(run_dir: RunDir, content: dict[str, Any] | None = None) -> list[Path]:
    """The complete checkpoints, newest first: folders and single files of weights."""
    content = _content(run_dir, content)
    checkpoints = [
        entry
        for folder, since in _folders(run_dir, "checkpoints", content).items()
        for entry in _written(folder, since)
        if not _PASSING.search(entry.name) and (_is_folder_of_one(entry) or _are_weights(entry))
    ]
    return sorted(checkpoints, key=_age, reverse=True)


def samples_of(run_dir: RunDir) -> Iterator[tuple[Path, Path]]:
    """The previews, each with its results folder, except those of abandoned attempts and posters of clips."""
    for folder, since in _folders(run_dir, "samples", _content(run_dir, None)).items():
        for entry in _written(folder, since, "**/*"):
            passes = any(_PASSING.search(part) for part in entry.relative_to(folder).parts)
            if (
                entry.suffix.lower() in (*COMMON_SUFFIXES, *CLIP_SUFFIXES)
                and not entry.stem.endswith(POSTER)
                and not passes
                and not (entry.parent / ABANDONED).exists()
            ):
                yield folder, entry


def last_saved_step(run_dir: RunDir) -> int | None:
    """The step of the newest checkpoint in the events."""
    steps = [event.get("step") for event in read_events(run_dir.events_jsonl) if event["kind"] == "saved"]
    return next((step for step in reversed(steps) if isinstance(step, int)), None)


def is_complete(path: Path) -> bool:
    """True if a file of weights is complete; nothing is unpickled."""
    try:
        if path.suffix in (".safetensors", ".sft"):
            return _is_complete_safetensors(path)
        return zipfile.is_zipfile(path)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return False


def _is_complete_safetensors(path: Path) -> bool:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > _MAX_HEADER:
            return False
        header = json.loads(file.read(length))
    ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
    return path.stat().st_size >= 8 + length + max(ends, default=0)


def _folders(run_dir: RunDir, kind: Kind, content: dict[str, Any]) -> dict[Path, float]:
    """Folders with results, and the time after which files count."""
    folders = content.get("folders")
    others = folders.get(kind) if is_object(folders) else None
    own = {run_dir.path / name: float("-inf") for name in _OWN[kind]}
    if not is_object(others):
        return own
    return own | {Path(folder): since for folder, since in others.items() if isinstance(since, int | float)}


def _content(run_dir: RunDir, content: dict[str, Any] | None) -> dict[str, Any]:
    try:
        return run_dir.read_run() if content is None else content
    except RunError:
        return {}


def _written(folder: Path, since: float, pattern: str = "*") -> Iterator[Path]:
    """Entries of a folder that are newer than `since`."""
    for entry in folder.glob(pattern):
        try:
            if entry.stat().st_mtime > since:
                yield entry
        except OSError:
            continue


def _is_folder_of_one(entry: Path) -> bool:
    return entry.is_dir() and entry.name != "sample"


def _are_weights(entry: Path) -> bool:
    return entry.suffix in WEIGHTS and entry.is_file() and is_complete(entry)


def _age(entry: Path) -> tuple[str, float, str]:
    """Sort key: the step for our engine, otherwise the time of the last write."""
    step = entry.name if _STEP.fullmatch(entry.name) else ""
    try:
        return step, 0.0 if step else entry.stat().st_mtime, entry.name
    except OSError:
        return step, 0.0, entry.name
