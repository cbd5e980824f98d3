"""Reading files that anybody may have put there: regular files only, without waiting, within a limit.

A FIFO, a device or a folder in a file's place is an error and never a hang. JSON that is read here can be
written again: it has no halves of characters and no numbers that JSON does not have.
"""

from __future__ import annotations

import errno
import json
import math
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

MOST_BYTES = 64 * 2**20
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def open_plain(path: Path, *, append: bool = False) -> BinaryIO:
    """The regular file at `path`, opened to read it or to append to it, unbuffered in the second case.

    Raises:
        OSError: it cannot be opened, or is not a regular file.
    """
    mode = os.O_WRONLY | os.O_APPEND | os.O_CREAT if append else os.O_RDONLY
    try:
        descriptor = os.open(path, mode | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        raise OSError(errno.EINVAL, "a FIFO or a socket, not a file", str(path)) from None
    kind = stat.S_IFMT(os.fstat(descriptor).st_mode)
    if kind != stat.S_IFREG:
        os.close(descriptor)
        number = errno.EISDIR if kind == stat.S_IFDIR else errno.EINVAL
        raise OSError(number, f"{_KINDS.get(kind, 'something else')}, not a file", str(path))
    return os.fdopen(descriptor, "ab" if append else "rb", 0 if append else -1)


def read_plain(path: Path, most: int = MOST_BYTES) -> bytes:
    """The content of the regular file at `path`.

    Raises:
        OSError: it cannot be read, is not a regular file, or has more than `most` bytes.
    """
    with open_plain(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EOVERFLOW, f"larger than {most:,} bytes", str(path))
    return content


def read_json(path: Path, most: int = MOST_BYTES) -> Any:
    """What the JSON file at `path` says.

    Raises:
        OSError: as `read_plain`.
        ValueError: as `parsed`.
    """
    return parsed(read_plain(path, most))


def parsed(data: bytes) -> Any:
    """What `data`, JSON in UTF-8, says; NaN and infinite numbers become null.

    Raises:
        ValueError: it is not UTF-8, not JSON, or nested too deeply.
    """
    text = data.decode("utf-8-sig")
    try:
        content = json.loads(
            text, parse_constant=lambda _: None, parse_float=_finite, object_pairs_hook=as_object
        )
        return _whole(content) if "\\ud" in text or "\\uD" in text else content
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def whole_text(text: str) -> str:
    """`text` with a question mark for each half of a character, which nothing can send or store."""
    return text.encode("utf-8", "replace").decode()


def as_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object that JSON says; by Python, so that a thread that parses a large text lets others run."""
    return dict(pairs)


def _finite(text: str) -> float | None:
    number = float(text)
    return number if math.isfinite(number) else None


def _whole(value: Any) -> Any:
    if isinstance(value, str):
        return whole_text(value)
    if isinstance(value, dict):
        return {whole_text(name): _whole(item) for name, item in value.items()}
    return [_whole(item) for item in value] if isinstance(value, list) else value
