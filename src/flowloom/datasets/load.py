"""The rows that a configuration trains, from its JSONLs and its folders of images."""

from __future__ import annotations

from dataclasses import replace

from flowloom.config.run import RunConfig
from flowloom.data.clip_rules import clip_rules
from flowloom.data.dataset import Dataset, DatasetSource, dataset_sources
from flowloom.datasets.build.update import folder_rows


def load_dataset(config: RunConfig, *, is_checked: bool = False) -> Dataset:
    """The datasets that `dataloader` and `datasets` name, as one. Rows of folders are brought up to date.

    Args:
        is_checked: see `Dataset.from_sources`.

    Raises:
        DataError: a JSONL or folder cannot be read, or too many rows cannot be used.
    """
    with_videos = clip_rules(config) is not None
    sources = [_with_jsonl(source, with_videos) for source in dataset_sources(config)]
    return Dataset.from_sources(sources, config, is_checked=is_checked)


def _with_jsonl(source: DatasetSource, with_videos: bool) -> DatasetSource:
    """`source` with the JSONL of its folder of images with captions, if it names a folder."""
    if not source.path.is_dir():
        return source
    rows = folder_rows(source.path, with_videos=with_videos)
    return replace(source, path=rows.path, source=source.path, left_out=rows.left_out)
