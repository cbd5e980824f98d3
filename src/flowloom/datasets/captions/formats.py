"""A caption as a file or a JSONL row holds it: read as text, and replaced without changing other fields."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowloom.data.row_checks import CAPTION, IS_TAGS, BadRow, Unusable, captions_of, parse
from flowloom.datasets.build.text import CAPTION_KEYS, looks_tag_based, read_sidecar
from flowloom.errors import DataError
from flowloom.json_types import is_array, is_object
from flowloom.text_files import decode

SUFFIXES = (".txt", ".caption", ".json")
"""Of caption files; the first one that exists is read, as in `flowloom dataset build`."""
NO_VERSION = "none"
"""The version of a caption that does not exist."""
MAX_BYTES = 2**20
"""A larger file is not a caption."""


@dataclass(frozen=True)
class Caption:
    """The caption of one image."""

    text: str
    version: str
    """Changes with the content."""
    is_tags: bool
    problem: str = ""
    """Why it cannot be read."""
    texts: tuple[str, ...] = ()
    """Each of several captions, without empty ones; as stored."""


NO_CAPTION = Caption("", NO_VERSION, is_tags=False)


def version_of(data: bytes | None) -> str:
    """A digest of `data`; NO_VERSION for None."""
    return NO_VERSION if data is None else hashlib.blake2b(data, digest_size=12).hexdigest()


def is_tags(text: str) -> bool:
    """True if `text` is a list of tags: as builds decide it, or a few words between commas."""
    parts = [part.split() for part in text.split(",")]
    return looks_tag_based(text) or (bool(text) and text[-1] not in ".!?" and max(map(len, parts)) <= 2)


def parse_file(name: str, data: bytes) -> Caption:
    """The caption in `data`, the content of the file `name`."""
    version = version_of(data)
    if len(data) > MAX_BYTES:
        return Caption("", version, False, f"{name} has {len(data):,} bytes: too large for a caption")
    try:
        content = read_sidecar(name, data, "utf-8")
    except DataError as error:
        return Caption("", version, False, f"{name}: {error}")
    return _caption(content.texts, version, content.is_tag_based)


def read_caption(folder: Path, sidecar: str) -> Caption:
    """The caption in the file `sidecar` below `folder`; NO_CAPTION if there is no such file."""
    if not sidecar:
        return NO_CAPTION
    try:
        return parse_file(Path(sidecar).name, (folder / sidecar).read_bytes())
    except FileNotFoundError:
        return NO_CAPTION
    except OSError as error:
        return Caption("", "unreadable", False, f"{sidecar}: {os.strerror(error.errno or 0).lower()}")


def edited_file(name: str, data: bytes | None, captions: Sequence[str]) -> bytes | None:
    """The content of the file `name` with `captions`; None: an empty caption needs no file.

    Args:
        data: its content now; other fields of a JSON object are kept.
    """
    text = "\n".join(captions).strip()
    if not name.endswith(".json"):
        return f"{text}\n".encode() if text else None
    fields: dict[str, Any] = {}
    with suppress(ValueError):
        content = json.loads(data or b"{}")
        fields = content if is_object(content) else {}
    lower = {name.lower(): name for name in fields}
    key = next((lower[name] for name in CAPTION_KEYS if name in lower), "caption")
    parts = [tag.strip() for tag in text.split(",")] if key.lower() == "tags" else text.split("\n")
    fields[key] = parts if is_array(fields.get(key)) else text
    return json.dumps(fields, ensure_ascii=False, indent=1).encode() + b"\n"


def parse_row(line: bytes) -> Caption:
    """The caption in a line of a JSONL; a row without one has an empty caption, not a problem."""
    row = parse(line)
    if isinstance(row, BadRow) and not row.filename:
        return Caption("", version_of(line), False, row.reason)
    return caption_of_row(row.fields, version_of(line))


def caption_of_row(fields: dict[str, Any], version: str) -> Caption:
    """The caption in the fields of a row."""
    if fields.get(CAPTION) in (None, "", []):
        return Caption("", version, fields.get(IS_TAGS) is True)
    stated = fields.get(IS_TAGS)
    try:
        return _caption(captions_of(fields), version, stated if isinstance(stated, bool) else None)
    except Unusable as error:
        return Caption("", version, stated is True, str(error))


def edited_row(line: bytes, captions: Sequence[str], is_tags: bool | None = None) -> bytes:
    """`line` with `captions`; a row that has a list keeps a list.

    Args:
        is_tags: the new value of `is_tag_based`; None keeps what the row says.
    """
    is_list = isinstance(row_fields(line).get(CAPTION), list)
    text = " ".join(caption.rstrip("\r") for caption in captions)
    changes = {CAPTION: list(captions) if is_list else text}
    return with_fields(line, changes | ({} if is_tags is None else {IS_TAGS: is_tags}))


def with_fields(line: bytes, changes: dict[str, Any], removed: Sequence[str] = ()) -> bytes:
    """`line` with other values of its caption fields, in the style that it is written in."""
    fields = {key: value for key, value in (row_fields(line) | changes).items() if key not in removed}
    separators = (", ", ": ") if b'": ' in line else (",", ":")
    return json.dumps(fields, ensure_ascii=False, separators=separators).encode()


def row_fields(line: bytes) -> dict[str, Any]:
    """The fields of a line that `parse` accepted as an object.

    Unlike orjson, Python's parser keeps whole numbers of any size, which must be written back unchanged.
    """
    return json.loads(decode(line))


def _caption(texts: Sequence[str], version: str, stated: bool | None) -> Caption:
    text = "\n".join(part.strip() for part in texts).strip()
    parts = tuple(part for part in texts if part.strip())
    return Caption(text, version, is_tags(text) if stated is None else stated, texts=parts)
