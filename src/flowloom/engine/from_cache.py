"""Training without encoder files: a check that the cache on disk holds all of their output."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from flowloom.config.run import RunConfig
from flowloom.data.buckets import LEFT_OUT
from flowloom.data.cache.encodings import ConditioningCache, PersistentCache
from flowloom.data.cache.setup import open_encoding_caches
from flowloom.data.loader import Dataset
from flowloom.data.subjects import Encoded, Prompt, Reference
from flowloom.engine.fill_cache import captions_shown
from flowloom.errors import FlowloomError, ImageError, SourceError
from flowloom.models.device import choose_device, encoder_dtype
from flowloom.models.family import family_for

ROWS_CHECKED = 500


def missing_from_cache(config: RunConfig, dataset: Dataset, key: str) -> str:
    """A sentence on the records missing in the cache of the encoder at `key`, checked for rows spread over
    `dataset`; empty if none is missing.
    """
    folder = config.cache.dir
    if "://" not in folder and not Path(folder).is_dir():
        return f"{folder}, the cache, does not exist."
    try:
        latents, texts = open_encoding_caches(
            config, dataset, encoder_dtype(choose_device(config.parallel.device))
        )
    except FlowloomError as error:
        return str(error)
    role = next(file.role for file in family_for(config.model).files if key == f"model.{file.key}")
    cache: Any = latents if role == "latents" else texts
    rows = _some_rows(dataset)
    subjects = _images(rows) if role == "latents" else _captions(config, rows)
    try:
        found = [_is_known(cache, subject) for subject in subjects]
    except SourceError as error:
        return str(error)
    if all(found):
        return ""
    what = "latents" if role == "latents" else "caption states"
    return f"{found.count(False):,} of {len(found):,} checked {what} are missing in the cache in {folder}."


def _is_known(cache: PersistentCache[Any] | ConditioningCache, subject: Any) -> bool:
    try:
        return cache.knows(subject)
    except ImageError:
        # The row of a deleted image is skipped, so its latents are not needed.
        return True


def _images(dataset: Dataset) -> Iterator[Encoded]:
    for row in np.flatnonzero(dataset.row_buckets != LEFT_OUT).tolist():
        yield row, dataset.buckets[dataset.row_buckets[row]]
        for number in range(int(dataset.metadata.num_references[row])):
            yield Reference(row, number)


def _captions(config: RunConfig, dataset: Dataset) -> Iterator[Prompt]:
    return (caption for _, caption in captions_shown(config, dataset))


def _some_rows(dataset: Dataset) -> Dataset:
    """At most `ROWS_CHECKED` rows of `dataset`, from all of it."""
    used = np.flatnonzero(dataset.row_buckets != LEFT_OUT)
    chosen = used[np.linspace(0, len(used) - 1, min(len(used), ROWS_CHECKED)).astype(int)]
    row_buckets = np.full_like(dataset.row_buckets, LEFT_OUT)
    row_buckets[chosen] = dataset.row_buckets[chosen]
    return replace(dataset, row_buckets=row_buckets)
