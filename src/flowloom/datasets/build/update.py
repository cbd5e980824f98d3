"""Compare a JSONL with the folder that it was built from, and update it; build the rows of a folder."""

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
from flowloom.datasets.build.open import open_dataset
from flowloom.datasets.build.options import BuildOptions, Kind
from flowloom.datasets.build.state import SUFFIX, BuildState, recorded_recipe
from flowloom.errors import DataError
from flowloom.image_suffixes import VIDEO_SUFFIXES

UPDATABLE: tuple[Kind, ...] = ("folder", "kohya")
"""Formats whose images and captions are files that people edit."""


@dataclass(frozen=True)
class Freshness:
    """The comparison of a JSONL with the folder that it was built from."""

    source: Path
    num_changed: int
    """Rows that a build would add to the JSONL or remove from it; the larger number."""
    is_outdated: bool
    """A build would write other rows now than the last build did."""
    is_edited: bool
    """The JSONL itself was changed after the build; another build would discard these changes."""

    def message(self, jsonl: Path) -> str:
        """The message about an outdated JSONL, with a hint."""
        rows = f"{self.num_changed:,} row{'s differ' if self.num_changed != 1 else ' differs'}"
        edited = " The JSONL was edited, too: an update discards these edits." if self.is_edited else ""
        return (
            f"{jsonl} is outdated: {rows} from the images and captions in {self.source}. "
            f"Update the JSONL (in the studio, or with 'flowloom dataset update {jsonl}'), or use the folder "
            f"instead.{edited}"
        )


@dataclass(frozen=True)
class FolderRows:
    """The current rows of a folder of images with captions."""

    path: Path
    """The JSONL with these rows; replaced when they change."""
    kind: str
    left_out: dict[str, int]
    """Images that did not become a row, by reason."""


def recipe_of(jsonl: Path) -> Recipe | None:
    """The recipe of `jsonl`, if it was built from a folder that still exists; otherwise None."""
    recorded = recorded_recipe(jsonl)
    try:
        recipe = Recipe.model_validate_json(recorded) if recorded else None
    except ValidationError:  # written by another version
        return None
    return recipe if recipe and "://" not in recipe.source and Path(recipe.source).is_dir() else None


def freshness(jsonl: Path) -> Freshness | None:
    """The comparison of `jsonl` with its folder; None if it has none, or the folder is unreadable.

    Nothing is written. Files that are unchanged since the build are not read again.
    """
    recipe = recipe_of(jsonl)
    if recipe is None or not jsonl.is_file():
        return None
    try:
        lines = _lines_now(recipe, jsonl)
    except (DataError, OSError, sqlite3.Error):
        return None
    if lines is None:
        return None
    is_outdated, is_edited = digest_of_lines(lines) != recipe.digest, digest_of(jsonl) != recipe.digest
    num_changed = num_differing(lines, jsonl.read_bytes().splitlines(keepends=True)) if is_outdated else 0
    return Freshness(Path(recipe.source), num_changed, is_outdated, is_edited)


def _lines_now(recipe: Recipe, jsonl: Path) -> list[bytes] | None:
    opened = open_dataset(recipe.source, recipe.options)
    if opened.kind not in UPDATABLE:
        return None
    # Read only: the folder may belong to another user.
    with closing(BuildState(jsonl.with_name(f"{jsonl.name}{SUFFIX}"), is_read_only=True)) as state:
        return list(lines_now(opened, recipe.options, state))


def update(jsonl: Path, on_progress: Callable[[BuildReport], None] = lambda _: None) -> BuildReport:
    """Build `jsonl` again from its folder, with the options of its build.

    Raises:
        DataError: it was not built from a folder, or the folder is unreadable; `jsonl` is unchanged.
    """
    recipe = recipe_of(jsonl)
    if recipe is None:
        raise DataError(
            f"{jsonl}: its source folder is not recorded or no longer exists. Build it again: "
            f"flowloom dataset build FOLDER -o {jsonl}"
        )
    return build(recipe.source, jsonl, recipe.options, on_progress)


def folder_rows(folder: Path, *, with_videos: bool = False) -> FolderRows:
    """The current rows of `folder`, in a JSONL in the user's cache, sorted by name as by a build.

    Only files that changed since the last call are read.

    Raises:
        DataError: the folder cannot be read, or has no image with a caption.
        AmbiguousSource: its folders may be Kohya's repeats or not.
    """
    folder = folder.absolute()
    name = hashlib.blake2b(os.fsencode(folder), digest_size=12).hexdigest()
    output = _cache_dir() / (f"{name}-videos" if with_videos else name) / f"{folder.name or 'folder'}.jsonl"
    detected = detect(str(folder), BuildOptions(with_videos=with_videos))
    if "kohya" in detected.choices:
        detected.checked()
    # As in the gallery, tables and archives in a folder of images are ignored.
    kind = detected.kind if detected.kind in UPDATABLE else "folder"
    options = BuildOptions(kind=kind, with_videos=with_videos)
    try:
        report = build(str(folder), output, options, lambda _: None)
    except DataError as error:
        if with_videos or not _has_videos(folder):
            raise
        message = f"{folder} has videos and no images with captions, and the model trains on images only."
        raise DataError(f"{message} Add images, or choose a model that trains on video.") from error
    left_out = Counter(bad.reason for bad in report.unusable)
    return FolderRows(output, report.kind, dict(left_out.most_common()))


def _has_videos(folder: Path) -> bool:
    return any(path.name.lower().endswith(VIDEO_SUFFIXES) for path in folder.rglob("*"))


def left_out_message(folder: Path, left_out: Mapping[str, int]) -> str:
    """The message about images of `folder` that did not become a row."""
    total = sum(left_out.values())
    reasons = "; ".join(f"{count:,}: {reason}" for reason, count in left_out.items())
    return f"{folder}: {total:,} image{'s are' if total > 1 else ' is'} left out ({reasons})."


@cache
def _cache_dir() -> Path:
    """The folder for JSONLs of folders; temporary if the user's cache is not writable."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = home / "flowloom" / "folders"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return Path(tempfile.mkdtemp(prefix="flowloom-folders-"))
    return folder if os.access(folder, os.W_OK) else Path(tempfile.mkdtemp(prefix="flowloom-folders-"))


def num_differing(first: Iterable[bytes], second: Iterable[bytes]) -> int:
    """The number of lines that only one side has; the larger of the two numbers."""
    counts, others = Counter(map(hash, first)), Counter(map(hash, second))
    return max((counts - others).total(), (others - counts).total())
