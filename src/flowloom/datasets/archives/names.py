"""Names that come from elsewhere, of uploads and in archives, as paths that are safe below a folder."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

from flowloom.datasets.build.items import JUNK, PICTURES
from flowloom.datasets.build.pairs import split_suffix

TEXTS = frozenset((".txt", ".caption", ".json", ".jsonl", ".csv", ".tsv", ".toml", ".parquet"))
"""Suffixes of what may stand beside pictures."""
ZIP = ".zip"
MAX_PART_BYTES, MAX_NAME_BYTES, MAX_DEPTH = 240, 1000, 32


class Unfit(Exception):
    """Why a name cannot be that of a file in a data set."""


class Unwanted(Unfit):
    """A dataset has no use for the file: it is hidden, a system's, or neither an image nor a text."""


def fit(name: str) -> str:
    """`name` as a path below a data set's folder, with `/` between its parts.

    Raises:
        Unfit: it leads out, is too long or is not text.
        Unwanted: it is hidden, or not that of an image or a text.
    """
    name = unicodedata.normalize("NFC", name.replace("\\", "/"))
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if not parts or name.startswith("/") or ".." in parts or parts[0].endswith(":"):
        raise Unfit("it leads out of the folder")
    fitting = "/".join(parts)
    try:
        lengths = [len(part.encode()) for part in parts]
    except UnicodeEncodeError:
        raise Unfit("it is not Unicode") from None
    if any(unicodedata.category(letter) in ("Cc", "Zl", "Zp") for letter in fitting):
        raise Unfit("it has a control character in it")
    if max(lengths) > MAX_PART_BYTES or sum(lengths) > MAX_NAME_BYTES or len(parts) > MAX_DEPTH:
        raise Unfit("it is too long")
    if any(part.startswith(".") or part.lower() in JUNK for part in parts):
        raise Unwanted("a hidden file, or one that a system leaves behind")
    suffix = split_suffix(parts[-1])[1]
    if suffix not in PICTURES and suffix not in TEXTS:
        raise Unwanted(f"not an image or caption file ({suffix or 'no extension'})")
    return fitting


def place_for(folder: Path, fitting: str) -> Path:
    """The path of `fitting` below `folder`, the folders above it made.

    Raises:
        Unfit: a link on the way leads elsewhere.
        OSError: a file is in the way, or the disk is full.
    """
    path = folder
    *above, last = fitting.split("/")
    for part in above:
        path = path / part
        if path.is_symlink():
            raise Unfit("a link is in the way")
        path.mkdir(exist_ok=True)
    return path / last


def move_new(source: Path, target: Path) -> bool:
    """Move `source` to `target` on the same disk, unless something is there; whether it was moved."""
    try:
        os.link(source, target)
    except FileExistsError:
        return False
    except OSError:  # no hard links on this file system
        if target.exists() or target.is_symlink():
            return False
        source.rename(target)
        return True
    source.unlink()
    return True
