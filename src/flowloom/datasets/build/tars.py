"""Read untrusted tars in bounded memory: a header may claim a name of gigabytes, or an endless map."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any

MAX_HEADER_BYTES = 2**20
"""Limit of one name or set of extended headers; names have a few hundred bytes."""
MAX_HEADERS_BYTES = 2**28
"""Limit of all of them in a tar."""
MAX_CONSECUTIVE_HEADERS = 16
"""Extended headers before one member."""
_EXTENDED = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)


class _Bounded(tarfile.TarInfo):
    """A member whose names and fields are read only if they are short."""

    def _proc_member(self, tar: Any) -> tarfile.TarInfo:
        """Called with the tar for each header, before the content after it is read."""
        if self.type == tarfile.GNUTYPE_SPARSE:
            raise tarfile.ReadError("it has a sparse file, which no program writes for images")
        num_consecutive = 0
        if self.type in _EXTENDED:
            num_consecutive = getattr(tar, "num_consecutive", 0) + 1
            tar.header_bytes = getattr(tar, "header_bytes", 0) + self.size
            if not 0 <= self.size <= MAX_HEADER_BYTES:
                limit = f"the limit is {MAX_HEADER_BYTES:,}"
                raise tarfile.ReadError(f"it has a name or header of {self.size:,} bytes; {limit}")
            if tar.header_bytes > MAX_HEADERS_BYTES or num_consecutive > MAX_CONSECUTIVE_HEADERS:
                raise tarfile.ReadError("it has more names and headers than files")
        tar.num_consecutive = num_consecutive
        parent: Any = super()  # its stub has no such method
        return parent._proc_member(tar)

    def _proc_gnusparse_00(self, *_: Any) -> None:
        raise tarfile.ReadError("it has a sparse file, which no program writes for images")

    _proc_gnusparse_01 = _proc_gnusparse_10 = _proc_gnusparse_00


def open_tar(path: Path, mode: Any, encoding: str = "utf-8") -> tarfile.TarFile:
    """The tar at `path`, with bounded headers.

    Raises:
        tarfile.TarError, OSError, EOFError: it is not a tar, or is damaged.
    """
    return tarfile.open(path, mode, encoding=encoding, tarinfo=_Bounded)


def is_tar(path: Path) -> bool:
    """True if `path` is a tar, compressed or not."""
    try:
        with open_tar(path, "r:*"):
            return True
    except (tarfile.TarError, OSError, EOFError):
        return False
