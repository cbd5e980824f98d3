"""Files as one zip, made while it is sent: no copy on the disk, no more than a piece in memory."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from typing_extensions import Buffer

PIECE_BYTES = 2**20


class _Outbox(io.RawIOBase):
    """Takes what is written until it is fetched; it cannot be rewound."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, piece: Buffer, /) -> int:
        self._pieces.append(bytes(piece))
        return len(self._pieces[-1])

    def fetch(self) -> bytes:
        """What was written since the last time."""
        pieces, self._pieces = self._pieces, []
        return b"".join(pieces)


def stream_zip(files: Iterable[tuple[str, Path]]) -> Iterator[bytes]:
    """The bytes of a zip of `files`, names within it and where they lie.

    Stored, not packed: weights and pictures do not get smaller. Any file may have more than 4 GiB (Zip64).
    What is gone by its turn, a checkpoint that was retired say, is left out.
    """
    outbox = _Outbox()
    with zipfile.ZipFile(outbox, "w", zipfile.ZIP_STORED) as archive:
        for name, path in files:
            try:
                file = path.open("rb")
            except FileNotFoundError:
                continue
            about = zipfile.ZipInfo.from_file(path, name, strict_timestamps=False)
            with file, archive.open(about, "w", force_zip64=True) as entry:
                while piece := file.read(PIECE_BYTES):
                    entry.write(piece)
                    yield outbox.fetch()
    yield outbox.fetch()
