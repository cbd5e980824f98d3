"""Reference images of rows: the images that an image was edited from, for models that edit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flowloom.config.run import RunConfig
from flowloom.data.dataset import Dataset, dataset_sources
from flowloom.data.fetch.image_source import ImageSource
from flowloom.data.images.decode import load_whole
from flowloom.data.index import read_columns
from flowloom.data.metadata import Row
from flowloom.data.subjects import file_of
from flowloom.errors import ConfigError, DataError, ImageError, Problem
from flowloom.models.family import ModelFamily, family_for
from flowloom.storage.base import shown


@dataclass(frozen=True)
class ReferenceReader:
    """Reads the reference images of a dataset's rows."""

    dataset: Dataset
    images: ImageSource
    size_of: Callable[[int, int], tuple[int, int]]
    """Width and height that an image is resized to, by its own."""

    def read(self, row: Row) -> tuple[NDArray[np.uint8], ...]:
        """Pixels (h, w, 3) of each reference of `row`.

        Raises:
            ImageError: one is missing or damaged.
        """
        data = self.dataset
        if data.dummy_image:
            width, height = self.size_of(row.width, row.height)
            return (np.zeros((height, width, 3), np.uint8),) * len(row.references)
        return tuple(self._pixels(file_of(row, number)) for number in range(len(row.references)))

    def _pixels(self, image: Row) -> NDArray[np.uint8]:
        data = self.dataset
        try:
            content = self.images.get(image, data.source_of(image).folder)
            return load_whole(content, self.size_of, data.background, data.max_megapixels)
        except ImageError as error:
            raise ImageError(f"reference {shown(image.filename)}: {error}") from error


def reference_reader(config: RunConfig, dataset: Dataset, images: ImageSource) -> ReferenceReader | None:
    """The reader of the references of `dataset`; None if its rows have none.

    Raises:
        DataError: the model's family does not edit images.
        ConfigError: a setting does not fit them.
    """
    if not dataset.metadata.num_references.any():
        return None
    family = family_for(config.model)
    size_of = reference_sizes(family, config.dataloader.reference_resolution)
    if size_of is None:
        raise DataError(
            f"{dataset.path}: rows have references, images to edit, which {family.title} does not read. "
            "Choose a model that edits images, or remove the key references."
        )
    if config.training.cfg_scale_strength is not None:
        message = "cannot be used with reference images: set it to null."
        raise ConfigError("the configuration", [Problem("training.cfg_scale_strength", message)])
    return ReferenceReader(dataset, images, size_of)


def most_references(config: RunConfig) -> int:
    """The most reference images that a row has, for estimates before the dataset is loaded."""
    if family_for(config.model).defaults.reference_size is None:
        return 0
    paths = [source.path for source in dataset_sources(config)]
    marks = [(path, path.stat().st_mtime_ns) for path in paths if path.is_file()]
    return max((_most_references(*mark) for mark in marks), default=0)


@lru_cache(maxsize=16)
def _most_references(path: Path, _mtime_ns: int) -> int:
    columns, _ = read_columns(path)
    return int(columns["num_references"].max(initial=0))


def reference_sizes(family: ModelFamily, resolution: int) -> Callable[[int, int], tuple[int, int]] | None:
    """Width and height of a reference image by its own; None if the family does not edit images."""
    of_family = family.defaults.reference_size
    return None if of_family is None else lambda width, height: of_family(width, height, resolution)
