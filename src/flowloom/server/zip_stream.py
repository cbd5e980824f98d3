"""A zip created while it is sent, without a copy on disk and with one chunk in memory."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from typing_extensions import Buffer

CHUNK_BYTES = 2**20


class _Buffer(io.RawIOBase):
    """Collects written bytes until they are fetched. Not seekable."""

    def __init__(self) -> None:
        self._chunks: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, chunk: Buffer, /) -> int:
        self._chunks.append(bytes(chunk))
        return len(self._chunks[-1])

    def fetch(self) -> bytes:
        """Return and drop the collected bytes."""
        chunks, self._chunks = self._chunks, []
        return b"".join(chunks)


def stream_zip(files: Iterable[tuple[str, Path]]) -> Iterator[bytes]:
    """The bytes of a zip of `files`: pairs of a name in the zip and a path.

    Uncompressed, since weights and images do not shrink. Files may exceed 4 GiB (Zip64). Files deleted
    meanwhile, such as an expired checkpoint, are left out.
    """
    buffer = _Buffer()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, path in files:
            try:
                file = path.open("rb")
            except FileNotFoundError:
                continue
            about = zipfile.ZipInfo.from_file(path, name, strict_timestamps=False)
            with file, archive.open(about, "w", force_zip64=True) as entry:
                while chunk := file.read(CHUNK_BYTES):
                    entry.write(chunk)
                    yield buffer.fetch()
    yield buffer.fetch()
