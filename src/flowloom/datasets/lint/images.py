"""Open and decode every image of a dataset once: size, digest, fingerprint and problems."""

from __future__ import annotations

import hashlib
import io
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from flowloom.data.buckets import Bucket
from flowloom.data.fetch.image_source import ImageSource
from flowloom.data.images.decode import load_image
from flowloom.data.loader import Dataset
from flowloom.data.metadata import Row
from flowloom.data.subjects import file_of
from flowloom.data.video.decode import Clip, load_clip
from flowloom.data.video.probe import VideoInfo, probe
from flowloom.datasets.lint.near_duplicates import SIDE, Fingerprint, fingerprint
from flowloom.errors import ImageError
from flowloom.storage.base import StorageSection

AHEAD = 64
"""Images that are checked ahead."""
_ORIENTATION, _ROTATED = 0x0112, (5, 6, 7, 8)


@dataclass(frozen=True)
class ImageCheck:
    """The result of checking one image."""

    size: tuple[int, int] | None = None
    """Width and height as displayed."""
    digest: bytes = b""
    """Of the file."""
    fingerprint: Fingerprint | None = None
    missing: str = ""
    """The reason why there is no file."""
    damaged: str = ""
    """The reason why it cannot be decoded."""
    video: VideoInfo | None = None
    """The facts of a clip's video."""

    @property
    def is_decoded(self) -> bool:
        """True if the image was decoded."""
        return self.fingerprint is not None


class ImageChecker:
    """Reads images like training, so that it finds the images that training would skip."""

    def __init__(self, dataset: Dataset, with_urls: bool, storage: StorageSection):
        self.dataset = dataset
        self.with_urls = with_urls
        self._images = ImageSource(storage)

    def source(self, row: Row) -> bytes:
        """The bytes of a row's file.

        Raises:
            ImageError: it cannot be read.
        """
        try:
            image = self._images.get(row, self.dataset.source_of(row).folder)
            return image if isinstance(image, bytes) else image.read_bytes()
        except (OSError, ValueError) as error:
            raise ImageError(str(error)) from error

    def check(self, row: Row) -> ImageCheck:
        """Check the image of `row`; one at a URL is not downloaded unless `with_urls` is set."""
        if row.is_url_based and not self.with_urls:
            return ImageCheck()
        if row.is_clip:
            return check_clip(self._images, row, self.dataset)
        try:
            source = self.source(row)
        except ImageError as error:
            return ImageCheck(missing=str(error))
        try:
            pixels = load_image(source, (SIDE, SIDE), self.dataset.background, self.dataset.max_megapixels)
            size = displayed_size(source)
        except ImageError as error:
            return ImageCheck(damaged=str(error))
        digest = hashlib.blake2b(source, digest_size=16).digest()
        return ImageCheck(size, digest, fingerprint(pixels), missing=self._unread_reference(row))

    def _unread_reference(self, row: Row) -> str:
        """The reason why a reference image of `row` cannot be read; empty if all can."""
        for number, name in enumerate(row.references):
            try:
                content = self.source(file_of(row, number))
                load_image(content, (SIDE, SIDE), self.dataset.background, self.dataset.max_megapixels)
            except ImageError as error:
                return f"reference {name}: {error}"
        return ""

    def check_all(self, threads: int, progress: Callable[[int], None]) -> Iterator[ImageCheck]:
        """Check the image of every row, in order."""
        metadata = self.dataset.metadata
        pending: deque[Future[ImageCheck]] = deque()
        with ThreadPoolExecutor(threads, thread_name_prefix="lint") as pool:
            for index in range(len(metadata)):
                pending.append(pool.submit(self.check, metadata.row(index)))
                if len(pending) > AHEAD:
                    yield pending.popleft().result()
                progress(index + 1)
            while pending:
                yield pending.popleft().result()


def check_clip(images: ImageSource, row: Row, dataset: Dataset) -> ImageCheck:
    """Read the video of `row` and decode the first frame of its clip."""
    folder, limit = dataset.source_of(row).folder, dataset.max_megapixels
    try:
        video = images.open_video(row, folder)
    except ImageError as error:
        return ImageCheck(missing=str(error))
    try:
        info = probe(video, limit)
        load_clip(images.open_video(row, folder), Clip(row.start_s, info.fps), Bucket(SIDE, SIDE), limit)
    except ImageError as error:
        return ImageCheck(damaged=str(error))
    return ImageCheck((info.width, info.height), video=info)


def displayed_size(source: bytes | Path) -> tuple[int, int]:
    """Width and height of the image in `source` from its header, with EXIF's rotation applied.

    Raises:
        ImageError: it is not an image.
    """
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            is_rotated = image.getexif().get(_ORIENTATION) in _ROTATED
            return (image.height, image.width) if is_rotated else image.size
    except (OSError, SyntaxError, ValueError, RuntimeError) as error:
        raise ImageError(f"not readable as an image: {error}") from error
