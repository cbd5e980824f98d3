"""Convert untrusted names, of uploads and in archives, to safe paths below a folder."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

from flowloom.datasets.build.items import JUNK
from flowloom.datasets.build.pairs import split_suffix
from flowloom.image_suffixes import IMAGE_SUFFIXES

TEXTS = frozenset((".txt", ".caption", ".json", ".jsonl", ".csv", ".tsv", ".toml", ".parquet"))
"""Suffixes of text files and tables beside images."""
ZIP = ".zip"
MAX_PART_BYTES, MAX_NAME_BYTES, MAX_DEPTH = 240, 1000, 32


class UnsafeName(Exception):
    """The reason why a name cannot be used for a file in a dataset."""


class UnsupportedFile(UnsafeName):
    """The file does not belong in a dataset: it is hidden, a system file, or not an image or text."""


def safe_name(name: str) -> str:
    """`name` as a path below a dataset's folder, with `/` as separator.

    Raises:
        UnsafeName: it leads out, is too long or is not text.
        UnsupportedFile: it is hidden, or is not the name of an image or a text.
    """
    name = unicodedata.normalize("NFC", name.replace("\\", "/"))
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if not parts or name.startswith("/") or ".." in parts or parts[0].endswith(":"):
        raise UnsafeName("it leads out of the folder")
    path = "/".join(parts)
    try:
        lengths = [len(part.encode()) for part in parts]
    except UnicodeEncodeError:
        raise UnsafeName("it is not Unicode") from None
    if any(unicodedata.category(letter) in ("Cc", "Zl", "Zp") for letter in path):
        raise UnsafeName("it contains a control character")
    if max(lengths) > MAX_PART_BYTES or sum(lengths) > MAX_NAME_BYTES or len(parts) > MAX_DEPTH:
        raise UnsafeName("it is too long")
    if any(part.startswith(".") or part.lower() in JUNK for part in parts):
        raise UnsupportedFile("a hidden or system file")
    suffix = split_suffix(parts[-1])[1]
    if suffix not in IMAGE_SUFFIXES and suffix not in TEXTS:
        raise UnsupportedFile(f"not an image or caption file ({suffix or 'no extension'})")
    return path


def prepare_path(folder: Path, name: str) -> Path:
    """The path of `name`, from `safe_name`, below `folder`; its parent folders are created.

    Raises:
        UnsafeName: one of the folders is a link.
        OSError: a file is in the way, or the disk is full.
    """
    path = folder
    *parents, last = name.split("/")
    for part in parents:
        path = path / part
        if path.is_symlink():
            raise UnsafeName("a link is in the way")
        path.mkdir(exist_ok=True)
    return path / last


def move_if_free(source: Path, target: Path) -> bool:
    """Move `source` to `target` on the same disk; False if `target` exists."""
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
