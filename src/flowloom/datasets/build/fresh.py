"""Keeps a JSONL in step with the folder that it was built from: images, captions and their order."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pydantic import ValidationError

from flowloom.datasets.build.build import BuildReport, Recipe, build, digest_of, digest_of_lines, lines_now
from flowloom.datasets.build.detect import detect
from flowloom.datasets.build.items import Reading
from flowloom.datasets.build.open import open_dataset
from flowloom.datasets.build.options import BuildOptions, Kind
from flowloom.datasets.build.state import SUFFIX, State, recorded_recipe
from flowloom.errors import DataError

FOLLOWED: tuple[Kind, ...] = ("folder", "kohya")
"""Forms of a source whose images and captions are files that people edit."""


@dataclass(frozen=True)
class Freshness:
    """How a JSONL compares with the folder that it was built from."""

    source: Path
    num_changed: int
    """Rows that a build would write now and the JSONL lacks, or the other way round; the larger number."""
    is_outdated: bool
    """A build would write something else now than the last one did."""
    is_edited: bool
    """The JSONL itself was changed after it was built: a build would discard these changes."""

    def told(self, jsonl: Path) -> str:
        """What to tell a user of an outdated JSONL, and what to do."""
        rows = f"{self.num_changed:,} row{'s differ' if self.num_changed != 1 else ' differs'}"
        edited = " It was edited itself, too: an update discards these edits." if self.is_edited else ""
        return (
            f"{jsonl} is outdated: {rows} from the images and captions that {self.source} has now. "
            f"Update the JSONL (in the studio, or by 'flowloom dataset update {jsonl}'), or name the folder "
            f"in its place.{edited}"
        )


@dataclass(frozen=True)
class FolderRows:
    """The rows of a folder of images with captions, as they are now."""

    path: Path
    """The JSONL that holds them; replaced as a whole when they change."""
    kind: str
    left_out: dict[str, int]
    """Images that did not become a row, by reason."""


def recipe_of(jsonl: Path) -> Recipe | None:
    """How `jsonl` was built, where that was from a folder that is still there; else None."""
    recorded = recorded_recipe(jsonl)
    try:
        recipe = Recipe.model_validate_json(recorded) if recorded else None
    except ValidationError:  # of another version
        return None
    return recipe if recipe and "://" not in recipe.source and Path(recipe.source).is_dir() else None


def freshness(jsonl: Path) -> Freshness | None:
    """How `jsonl` compares with its folder; None where it was not built from one, or that cannot be read.

    Nothing is written. Files that did not change since the build are not read again.
    """
    recipe = recipe_of(jsonl)
    if recipe is None or not jsonl.is_file():
        return None
    try:
        now = _lines_now(recipe, jsonl)
    except (DataError, OSError, sqlite3.Error):
        return None
    if now is None:
        return None
    is_outdated, is_edited = digest_of_lines(now) != recipe.digest, digest_of(jsonl) != recipe.digest
    num_changed = num_differing(now, jsonl.read_bytes().splitlines(keepends=True)) if is_outdated else 0
    return Freshness(Path(recipe.source), num_changed, is_outdated, is_edited)


def _lines_now(recipe: Recipe, jsonl: Path) -> list[bytes] | None:
    reading = _reading(recipe)
    if reading is None:
        return None
    with closing(_known(jsonl)) as state:
        return list(lines_now(reading, recipe.options, state))


def _known(jsonl: Path) -> State:
    """What the build of `jsonl` read, to look up only: the folder may be another's."""
    return State(jsonl.with_name(f"{jsonl.name}{SUFFIX}"), is_read_only=True)


def _reading(recipe: Recipe) -> Reading | None:
    reading = open_dataset(recipe.source, recipe.options)
    return reading if reading.kind in FOLLOWED else None


def update(jsonl: Path, on_progress: Callable[[BuildReport], None] = lambda _: None) -> BuildReport:
    """Build `jsonl` again from its folder, with the options of its build.

    Raises:
        DataError: it was not built from a folder, or that cannot be read; `jsonl` is as it was.
    """
    recipe = recipe_of(jsonl)
    if recipe is None:
        raise DataError(
            f"{jsonl}: no record of a folder that it was built from, or the folder is gone. Build it again: "
            f"flowloom dataset build FOLDER -o {jsonl}"
        )
    return build(recipe.source, jsonl, recipe.options, on_progress)


def folder_rows(folder: Path) -> FolderRows:
    """The rows of `folder` as its files are now, in a JSONL in the user's cache.

    The order is that of the build: by name. Only what changed since the last call is read.

    Raises:
        DataError: the folder cannot be read, or holds not one image with a caption; Unclear: its folders may
            be Kohya's repeats or not.
    """
    folder = folder.absolute()
    name = hashlib.blake2b(os.fsencode(folder), digest_size=12).hexdigest()
    output = _cache_dir() / name / f"{folder.name or 'folder'}.jsonl"
    detected = detect(str(folder), BuildOptions())
    if "kohya" in detected.choices:
        detected.checked()
    # Tables and archives in a folder of images are not what the gallery shows of it.
    options = BuildOptions(kind=detected.kind if detected.kind in FOLLOWED else "folder")
    report = build(str(folder), output, options, lambda _: None)
    left_out = Counter(bad.reason for bad in report.unusable)
    return FolderRows(output, report.kind, dict(left_out.most_common()))


def left_out_told(folder: Path, left_out: Mapping[str, int]) -> str:
    """What to tell of the images of `folder` that did not become a row."""
    total = sum(left_out.values())
    reasons = "; ".join(f"{count:,}: {reason}" for reason, count in left_out.items())
    return f"{folder}: {total:,} image{'s are' if total > 1 else ' is'} left out ({reasons})."


@cache
def _cache_dir() -> Path:
    """Where JSONLs of folders are kept; for this process alone where the user's cache cannot be written."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = home / "flowloom" / "folders"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return Path(tempfile.mkdtemp(prefix="flowloom-folders-"))
    return folder if os.access(folder, os.W_OK) else Path(tempfile.mkdtemp(prefix="flowloom-folders-"))


def num_differing(one: Iterable[bytes], other: Iterable[bytes]) -> int:
    """How many lines only one of both has, the larger number of the two sides."""
    first, second = Counter(map(hash, one)), Counter(map(hash, other))
    return max((first - second).total(), (second - first).total())
