"""The rows that a configuration trains, from its JSONLs and its folders of images."""

from __future__ import annotations

from dataclasses import replace

from flowloom.config.run import RunConfig
from flowloom.data.dataset import Dataset, DatasetSource, dataset_sources
from flowloom.datasets.build.update import folder_rows


def load_dataset(config: RunConfig) -> Dataset:
    """The datasets that `dataloader` and `datasets` name, as one. Rows of folders are brought up to date.

    Raises:
        DataError: a JSONL or folder cannot be read, or too many rows cannot be used.
    """
    return Dataset.from_sources([_with_jsonl(source) for source in dataset_sources(config)], config)


def _with_jsonl(source: DatasetSource) -> DatasetSource:
    """`source` with the JSONL of its folder of images with captions, if it names a folder."""
    if not source.path.is_dir():
        return source
    rows = folder_rows(source.path)
    return replace(source, path=rows.path, source=source.path, left_out=rows.left_out)
