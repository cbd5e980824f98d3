"""Images of a dataset with their captions, read and prepared ahead, in batches."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any

from flowloom.datasets.build.items import Unusable, reason_of
from flowloom.datasets.captions.store import CaptionStore
from flowloom.errors import DataError, SourceError, StoreDenied, Unavailable
from flowloom.tasks.tagging.image_sets import ImageSet, Target


@dataclass(frozen=True)
class Existing:
    """A place of the store as it is before the run."""

    place: str
    data: bytes | None
    captions: tuple[str, ...]


@dataclass(frozen=True)
class Prepared:
    """An image that can be described."""

    target: Target
    existing: list[Existing]
    image: Any


Batch = list[Prepared | Unusable]


def prepare_all(
    images: ImageSet, targets: list[Target], prepare_image: Callable[[bytes], Any], num_ahead: int
) -> Generator[Prepared | Unusable]:
    """Each image as input of the model, in order, prepared by threads `num_ahead` images ahead."""

    def prepare(target: Target) -> Prepared | Unusable:
        try:
            existing = existing_captions(images.store, target)
            return Prepared(target, existing, prepare_image(images.image(target)))
        except (Unavailable, StoreDenied):
            raise  # the whole store is unavailable, not this image
        except (DataError, SourceError) as error:
            return Unusable(target.name, str(error))
        except OSError as error:
            return Unusable(target.name, reason_of(error))

    waiting: deque[Future[Prepared | Unusable]] = deque()
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="images") as pool:
        try:
            for target in targets:
                waiting.append(pool.submit(prepare, target))
                if len(waiting) > num_ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def in_batches(prepared: Iterator[Prepared | Unusable], size: int) -> Iterator[Batch]:
    """`prepared`, `size` at a time."""
    return iter(lambda: list(islice(prepared, size)), [])


def usable_of(batch: Batch) -> list[Prepared]:
    """The images that can be described."""
    return [image for image in batch if isinstance(image, Prepared)]


def names_of(batch: Batch) -> list[str]:
    """The names of those."""
    return [image.target.name for image in usable_of(batch)]


def existing_captions(store: CaptionStore, target: Target) -> list[Existing]:
    """The captions that an image has.

    Raises:
        DataError: one cannot be read.
    """
    result: list[Existing] = []
    for place in target.places:
        data = store.read(place)
        caption = store.caption(place, data)
        if caption.problem:
            raise DataError(f"its caption cannot be read: {caption.problem}")
        result.append(Existing(place, data, caption.texts))
    return result
