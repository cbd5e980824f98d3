"""Reads numbers from the head of a file, and reports how many bytes it needs."""

from __future__ import annotations

from typing import BinaryIO, Literal

from flowloom.errors import ImageError


class NeedMore(ImageError):
    """The given bytes end before the size of the image.

    Attributes:
        length: bytes from the beginning that are needed to read further, perhaps not yet enough.
    """

    def __init__(self, given: int, length: int):
        super().__init__(f"not readable as an image: it ends within its header of at least {length} bytes")
        self.given = given
        self.length = length


class ByteReader:
    """A position in `file`; skipped bytes are not read."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self.position = 0
        self.order: Literal["little", "big"] = "big"

    def peek(self, count: int) -> bytes:
        """Up to `count` of the next bytes."""
        try:
            self._file.seek(self.position)
            return self._file.read(count)
        except (OSError, OverflowError) as error:
            raise ImageError(f"not readable as an image at byte {self.position}: {error}") from error

    def take(self, count: int) -> bytes:
        """The next `count` bytes.

        Raises:
            NeedMore: there are fewer.
        """
        data = self.peek(count)
        if len(data) < count:
            raise NeedMore(self.position + len(data), self.position + count)
        self.position += count
        return data

    def skip(self, count: int) -> None:
        """Move by `count` bytes."""
        self.position += count

    def number(self, count: int) -> int:
        """The next `count` bytes as an unsigned number."""
        return int.from_bytes(self.take(count), self.order)
