"""Width and height of an image, from the first bytes of a local or remote file."""

from __future__ import annotations

from pathlib import Path

from flowloom.data.images.headers import NeedMore, image_size
from flowloom.datasets.build.items import Content, LocalFile

FIRST_HEAD_BYTES = 2**15
"""Bytes of the first read; nearly every header is shorter."""
MAX_HEAD_BYTES = 2**26


def measure(content: Content) -> tuple[int, int]:
    """(width, height) of the image as displayed; reads no more than its header.

    Raises:
        ImageError: it is not an image, or its header is damaged.
    """
    if isinstance(content, LocalFile):
        return image_size(Path(content.key))
    length = FIRST_HEAD_BYTES
    while True:
        head = content.head(length)
        try:
            return image_size(head)
        except NeedMore as error:
            if len(head) < length or error.length > MAX_HEAD_BYTES:
                raise
            length = max(2 * length, error.length)
