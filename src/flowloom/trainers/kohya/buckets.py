"""The bucket that sd-scripts assigns to each image: its bucket sizes by its rules, without running it.

A test compares them with its `BucketManager`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import sqrt
from typing import NamedTuple

from flowloom.trainers.kohya.config import Dataset

Size = tuple[int, int]
"""Width and height in pixels."""


class Placed(NamedTuple):
    """The bucket of an image."""

    bucket: Size
    resized: Size
    """Size of the image before it is cropped to the bucket."""


@dataclass(frozen=True)
class Buckets:
    """The buckets of a dataset."""

    area: int
    steps: int
    sizes: tuple[Size, ...]
    """All buckets; empty if each image has its own (bucket_no_upscale)."""

    @classmethod
    def of(cls, dataset: Dataset) -> Buckets:
        """The buckets that `dataset` asks for; see `impossible`."""
        (width, height), steps = dataset.size, dataset.bucket_reso_steps
        if not dataset.enable_bucket:
            return cls(width * height, 1, ((width, height),))
        sizes = () if dataset.bucket_no_upscale else tuple(_sizes(dataset))
        return cls(width * height, steps, sizes)

    def place(self, width: int, height: int) -> Placed | None:
        """The bucket for an image of a stored size; None if sd-scripts has none."""
        if min(width, height) < 1:
            return None
        try:
            found = self._by_shape(width, height) if self.sizes else self._by_size(width, height)
        except ZeroDivisionError:
            return None
        return found if min(found.bucket) > 0 else None

    def _by_shape(self, width: int, height: int) -> Placed:
        """The bucket of the nearest aspect ratio; the image is scaled up or down to cover it."""
        shape = width / height
        if (width, height) in self.sizes:
            bucket = (width, height)
        else:
            bucket = min(self.sizes, key=lambda size: abs(size[0] / size[1] - shape))
        is_wider = shape > bucket[0] / bucket[1]
        scale = bucket[1] / height if is_wider else bucket[0] / width
        return Placed(bucket, (int(width * scale + 0.5), int(height * scale + 0.5)))

    def _by_size(self, width: int, height: int) -> Placed:
        """The image's own size, reduced if its area is too large, and rounded down to bucket steps."""
        resized = (width, height)
        if width * height > self.area:
            shape = width / height
            wide = sqrt(self.area * shape)
            across, down = self._rounded(wide), self._rounded(self.area / wide)
            by_width = abs(across / self._rounded(across / shape) - shape)
            by_height = abs(self._rounded(down * shape) / down - shape)
            if by_width < by_height:
                resized = (across, int(across / shape + 0.5))
            else:
                resized = (int(down * shape + 0.5), down)
        return Placed((resized[0] // self.steps * self.steps, resized[1] // self.steps * self.steps), resized)

    def _rounded(self, pixels: float) -> int:
        return int(pixels + 0.5) // self.steps * self.steps


def impossible(dataset: Dataset) -> Iterator[tuple[str, str]]:
    """Keys of a dataset that end sd-scripts, with the reason."""
    if not dataset.enable_bucket:
        return
    least, most = _limits(dataset)
    if min(dataset.size) < least:
        yield "min_bucket_reso", f"is more than the resolution, {min(dataset.size)}."
    if max(dataset.size) > most:
        yield "max_bucket_reso", f"is less than the resolution, {max(dataset.size)}."
    if least < 1 and not dataset.bucket_no_upscale:
        yield "min_bucket_reso", f"is less than bucket_reso_steps, {dataset.bucket_reso_steps}."


def _limits(dataset: Dataset) -> tuple[int, int]:
    """The least and the greatest side, as whole steps."""
    steps = dataset.bucket_reso_steps
    return dataset.min_bucket_reso // steps * steps, -(-dataset.max_bucket_reso // steps) * steps


def _sizes(dataset: Dataset) -> list[Size]:
    steps, (least, most) = dataset.bucket_reso_steps, _limits(dataset)
    width, height = dataset.size
    area = width * height
    middle = int(sqrt(area) // steps) * steps
    found = {(middle, middle)}
    for width in range(least, most + 1, steps):
        height = min(most, area // width // steps * steps)
        if height >= least:
            found |= {(width, height), (height, width)}
    return sorted(found)
