"""Every picture of a data set opened and decoded once: its size, its content, what it looks like."""

from __future__ import annotations

import hashlib
import io
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from flowloom.data.fetch.image_source import ImageSource
from flowloom.data.images.decode import load_image
from flowloom.data.loader import Dataset
from flowloom.data.metadata import Row
from flowloom.datasets.lint.near import SIDE, Fingerprint, fingerprint
from flowloom.errors import ImageError
from flowloom.storage.base import StorageSection

AHEAD = 64
"""Pictures read ahead of the one that is waited for."""
_ORIENTATION, _TURNED = 0x0112, (5, 6, 7, 8)


@dataclass(frozen=True)
class Look:
    """What one picture turned out to be."""

    size: tuple[int, int] | None = None
    """Width and height as shown."""
    digest: bytes = b""
    """Of the file."""
    print: Fingerprint | None = None
    missing: str = ""
    """Why there is no file."""
    damaged: str = ""
    """Why it cannot be decoded."""

    @property
    def is_seen(self) -> bool:
        """Whether there was a picture to look at."""
        return self.print is not None


class Looker:
    """Reads pictures as training does, so that what it cannot use is what training would skip."""

    def __init__(self, dataset: Dataset, with_urls: bool, storage: StorageSection):
        self.dataset = dataset
        self.with_urls = with_urls
        self._images = ImageSource(storage)

    def source(self, row: Row) -> bytes:
        """The bytes of a row's file.

        Raises:
            ImageError: there is none.
        """
        try:
            found = self._images.get(row, self.dataset.source_of(row).folder)
            return found if isinstance(found, bytes) else found.read_bytes()
        except (OSError, ValueError) as error:
            raise ImageError(str(error)) from error

    def look(self, row: Row) -> Look:
        """What the picture of `row` is; one at a URL is left alone unless asked for."""
        if row.is_url_based and not self.with_urls:
            return Look()
        try:
            source = self.source(row)
        except ImageError as error:
            return Look(missing=str(error))
        try:
            pixels = load_image(source, (SIDE, SIDE), self.dataset.background, self.dataset.max_megapixels)
            size = shown_size(source)
        except ImageError as error:
            return Look(damaged=str(error))
        return Look(size, hashlib.blake2b(source, digest_size=16).digest(), fingerprint(pixels))

    def look_at_all(self, threads: int, progress: Callable[[int], None]) -> Iterator[Look]:
        """A look at every row, in order."""
        metadata = self.dataset.metadata
        waiting: deque[Future[Look]] = deque()
        with ThreadPoolExecutor(threads, thread_name_prefix="look") as pool:
            for index in range(len(metadata)):
                waiting.append(pool.submit(self.look, metadata.row(index)))
                if len(waiting) > AHEAD:
                    yield waiting.popleft().result()
                progress(index + 1)
            while waiting:
                yield waiting.popleft().result()


def shown_size(source: bytes | Path) -> tuple[int, int]:
    """Width and height of the picture in `source`, turned as EXIF says, from its header.

    Raises:
        ImageError: it is none.
    """
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            is_turned = image.getexif().get(_ORIENTATION) in _TURNED
            return (image.height, image.width) if is_turned else image.size
    except (OSError, SyntaxError, ValueError, RuntimeError) as error:
        raise ImageError(f"not readable as an image: {error}") from error
