"""Width and height of a picture from the first bytes of its file, wherever that is."""

from __future__ import annotations

from pathlib import Path

from flowloom.data.images.headers import NeedMore, image_size
from flowloom.datasets.build.items import Content, LocalFile

FIRST_HEAD = 2**15
"""Bytes asked for at first; nearly every header ends within them."""
LONGEST_HEAD = 2**26


def measure(content: Content) -> tuple[int, int]:
    """(width, height) of the picture as it is shown, from as little of it as tells.

    Raises:
        ImageError: it is no picture, or its header is damaged.
    """
    if isinstance(content, LocalFile):
        return image_size(Path(content.key))
    length = FIRST_HEAD
    while True:
        head = content.head(length)
        try:
            return image_size(head)
        except NeedMore as error:
            if len(head) < length or error.length > LONGEST_HEAD:
                raise
            length = max(2 * length, error.length)
