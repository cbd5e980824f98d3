"""Tars from others, read in bounded memory: a header may claim a name of gigabytes, or a map without end."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any

MAX_HEADER_BYTES = 2**20
"""Of one name, or of one set of further fields; names have a few hundred."""
MAX_HEADERS_BYTES = 2**28
"""Of all of them in a tar."""
MAX_HEADERS_IN_A_ROW = 16
"""Further headers before one member."""
_FURTHER = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)


class _Bounded(tarfile.TarInfo):
    """A member whose names and fields are read only where they are short."""

    def _proc_member(self, tar: Any) -> tarfile.TarInfo:
        """Called for each header with the tar, before anything behind the header is read."""
        if self.type == tarfile.GNUTYPE_SPARSE:
            raise tarfile.ReadError("it has a sparse file, which no program writes for images")
        in_a_row = 0
        if self.type in _FURTHER:
            in_a_row = getattr(tar, "headers_in_a_row", 0) + 1
            tar.header_bytes = getattr(tar, "header_bytes", 0) + self.size
            if not 0 <= self.size <= MAX_HEADER_BYTES:
                limit = f"{MAX_HEADER_BYTES:,} are the limit"
                raise tarfile.ReadError(f"it has a name or header of {self.size:,} bytes; {limit}")
            if tar.header_bytes > MAX_HEADERS_BYTES or in_a_row > MAX_HEADERS_IN_A_ROW:
                raise tarfile.ReadError("it has more names and headers than files")
        tar.headers_in_a_row = in_a_row
        return super()._proc_member(tar)  # pyright: ignore[reportAttributeAccessIssue] -- not in its stub

    def _proc_gnusparse_00(self, *_: Any) -> None:
        raise tarfile.ReadError("it has a sparse file, which no program writes for images")

    _proc_gnusparse_01 = _proc_gnusparse_10 = _proc_gnusparse_00


def open_tar(path: Path, mode: Any, encoding: str = "utf-8") -> tarfile.TarFile:
    """The tar at `path`, whose headers are bounded.

    Raises:
        tarfile.TarError, OSError, EOFError: it is none, or is damaged.
    """
    return tarfile.open(path, mode, encoding=encoding, tarinfo=_Bounded)


def is_tar(path: Path) -> bool:
    """Whether `path` can be read as a tar, packed or not."""
    try:
        with open_tar(path, "r:*"):
            return True
    except (tarfile.TarError, OSError, EOFError):
        return False
