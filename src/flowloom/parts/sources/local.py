"""Images in a folder."""

from __future__ import annotations

from pathlib import Path

from flowloom.errors import ImageError

TWIN = ".jxl"
"""FLOW: a JPEG XL of the same name wins over the file itself."""
OTHER_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def find_image(folder: Path, filename: str) -> Path:
    """The file that `filename` means below `folder`: its .jxl twin, itself, or another format of its name.

    Raises:
        ImageError: there is none, or the name leads out of the folder.
    """
    root = folder.resolve()
    named = root / filename
    for path in (named.with_suffix(TWIN), named, *(named.with_suffix(suffix) for suffix in OTHER_SUFFIXES)):
        resolved = path.resolve()
        if not resolved.is_relative_to(root):
            raise ImageError(f"{filename} leads out of {folder}")
        if resolved.is_file():
            return resolved
    raise ImageError(f"no such file in {folder}")
