"""The caption of one picture of a folder: read with what tells its versions apart, written whole."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from flowloom.datasets.build.text import CAPTION_KEYS, looks_tag_based, read_sidecar
from flowloom.errors import DataError

SUFFIXES = (".txt", ".caption", ".json")
"""Of files with captions, the first one that is there wins: as `flowloom dataset build` has it."""
NONE = "none"
"""The version of a caption that is not there."""
MAX_BYTES = 2**20
"""A larger file is no caption."""


@dataclass(frozen=True)
class Caption:
    """What a file says of its picture."""

    text: str
    version: str
    """Another one when the file is."""
    is_tags: bool
    problem: str = ""
    """Why it cannot be read."""


NO_CAPTION = Caption("", NONE, is_tags=False)


def version_of(data: bytes) -> str:
    """A name for the content `data`."""
    return hashlib.blake2b(data, digest_size=12).hexdigest()


def is_tags(text: str) -> bool:
    """Whether `text` is a list of tags: as the library sees it, or a few words between commas."""
    parts = [part.split() for part in text.split(",")]
    return looks_tag_based(text) or (bool(text) and text[-1] not in ".!?" and max(map(len, parts)) <= 2)


def parsed(name: str, data: bytes) -> Caption:
    """The caption in the content `data` of the file `name`."""
    version = version_of(data)
    if len(data) > MAX_BYTES:
        return Caption("", version, False, f"{name} has {len(data):,} bytes: it is no caption")
    try:
        found = read_sidecar(name, data, "utf-8")
    except DataError as error:
        return Caption("", version, False, f"{name}: {error}")
    text = "\n".join(part.strip() for part in found.texts).strip()
    return Caption(text, version, is_tags(text) if found.is_tag_based is None else found.is_tag_based)


def read_caption(folder: Path, sidecar: str) -> Caption:
    """The caption in the file `sidecar` below `folder`; none where there is no such file."""
    if not sidecar:
        return NO_CAPTION
    try:
        return parsed(Path(sidecar).name, (folder / sidecar).read_bytes())
    except FileNotFoundError:
        return NO_CAPTION
    except OSError as error:
        return Caption("", "unreadable", False, f"{sidecar}: {os.strerror(error.errno or 0).lower()}")


def content_of(sidecar: str, text: str, before: bytes | None) -> bytes | None:
    """What the file `sidecar` holds when its caption is `text`; None: no caption needs no file.

    Args:
        before: what it held, whose other fields stay where it is JSON.
    """
    text = text.strip()
    if not sidecar.endswith(".json"):
        return f"{text}\n".encode() if text else None
    try:
        fields = json.loads(before or b"{}")
    except ValueError:
        fields = {}
    fields = fields if isinstance(fields, dict) else {}
    lower = {name.lower(): name for name in fields}
    key = next((lower[name] for name in CAPTION_KEYS if name in lower), "caption")
    parts = [tag.strip() for tag in text.split(",")] if key.lower() == "tags" else text.split("\n")
    fields[key] = parts if isinstance(fields.get(key), list) else text
    return json.dumps(fields, ensure_ascii=False, indent=1).encode() + b"\n"


def put(path: Path, data: bytes | None) -> None:
    """Make `data` the content of the file `path`, whole or not at all; None removes it."""
    if data is None:
        path.unlink(missing_ok=True)
        return
    partial = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
