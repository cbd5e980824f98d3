"""Safe reads of untrusted files, and atomic writes.

Reads accept only regular files up to a size limit: a FIFO, a device or a folder is an error and never a hang.
JSON that is read here can be written again: it has no lone surrogates and no NaN or infinite numbers.
"""

from __future__ import annotations

import errno
import json
import math
import os
import sqlite3
import stat
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from flowloom.json_types import is_array, is_object

_BUFFER_BYTES = 2**18
MOST_BYTES = 64 * 2**20
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def open_plain(path: Path, *, append: bool = False) -> BinaryIO:
    """Open the regular file at `path` for reading, or unbuffered for appending.

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
    # With the default of 8 KiB, a reading thread releases the interpreter too briefly for the event loop to
    # wake, which would then wait for the whole file.
    return os.fdopen(descriptor, "ab" if append else "rb", 0 if append else _BUFFER_BYTES)


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
    """The content of the JSON file at `path`.

    Raises:
        OSError: as `read_plain`.
        ValueError: as `parsed`.
    """
    return parsed(read_plain(path, most))


@contextmanager
def replacing(
    path: Path, partial: Path | None = None, permissions: int = 0o666, *, is_durable: bool = True
) -> Generator[BinaryIO]:
    """A temporary file that replaces `path` when the block ends; after an error, `path` is unchanged.

    Its data is on the disk before it gets the name, so a crash leaves the old file or the new one.

    Args:
        partial: the temporary file, in the folder of `path`; by default `path` with `.tmp` appended.
        is_durable: False skips the flush to the disk, for files that can be made again.
    """
    partial = partial or path.with_name(f"{path.name}.tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    try:
        with os.fdopen(os.open(partial, flags, permissions), "wb") as file:
            yield file
            file.flush()
            if is_durable:
                os.fsync(file.fileno())
        partial.replace(path)
        if is_durable:
            sync(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, content: Any) -> None:
    """Write `content` to `path` atomically."""
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
    with replacing(path) as file:
        file.write(f"{text}\n".encode())


def use_write_ahead_log(database: sqlite3.Connection, timeout_s: float) -> None:
    """Switch an SQLite database to the write-ahead log.

    SQLite ignores the connection's timeout here: without this, two processes that open a new file at the same
    moment would fail.

    Raises:
        sqlite3.OperationalError: the file is locked for `timeout_s`, or cannot be written.
    """
    end = time.monotonic() + timeout_s
    while True:
        try:
            database.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > end:
                raise
        time.sleep(0.02)


def parsed(data: bytes) -> Any:
    """The content of `data`, JSON in UTF-8; NaN and infinite numbers become null.

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
    """`text` with a question mark for each lone surrogate, which cannot be encoded."""
    return text.encode("utf-8", "replace").decode()


def as_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The pairs as a dict; a Python function, so that other threads run while a large text is parsed."""
    return dict(pairs)


def _finite(text: str) -> float | None:
    number = float(text)
    return number if math.isfinite(number) else None


def _whole(value: Any) -> Any:
    if isinstance(value, str):
        return whole_text(value)
    if is_object(value):
        return {whole_text(name): _whole(item) for name, item in value.items()}
    return [_whole(item) for item in value] if is_array(value) else value
