"""Local copies of the models and images of a run of sd-scripts that are in a bucket.

sd-scripts reads local files only. Its files name the copies, whose paths depend on the URLs alone; the copies
are made before it starts (start.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import IO, Any

from flowloom.errors import Problem
from flowloom.storage import folder_copy, local_copy
from flowloom.storage.base import StorageSection, scheme_of
from flowloom.storage.downloads.fetch import Watch, check_room
from flowloom.storage.folder_copy import Folder, copy_folder
from flowloom.storage.local_copy import copies_dir, copy_path
from flowloom.trainers.kohya.config import ImageFolder, KohyaConfig
from flowloom.trainers.kohya.images import READ, WITH_MORE

STORES = ("s3", "gs", "az")
WITHOUT_EFFECT = ("read_ahead_mib", "cache_dir", "cache_gib")
"""Keys of `storage` that a copy does not use."""


def is_in_store(value: str | None) -> bool:
    """True if `value` is the URL of an object or a folder in a bucket."""
    return scheme_of(value or "") in STORES


def with_copies(config: KohyaConfig) -> KohyaConfig:
    """`config` with the paths of the copies instead of URLs."""
    return _replaced(config, lambda url: str(copy_path(url)), lambda folder: str(folder.path))


def with_headers(config: KohyaConfig) -> KohyaConfig:
    """`config` with files of which only headers can be read, instead of the URLs of models.

    Raises:
        SourceError: a file cannot be read.
    """

    def header(url: str) -> str:
        return str(local_copy.header_copy(url, config.storage))

    return _replaced(config, header, lambda folder: folder.url)


def has_images_in_store(config: KohyaConfig) -> bool:
    """True if a folder of images or masks is in a bucket."""
    return bool(_folders(config))


def needs_copies(config: KohyaConfig) -> bool:
    """True if anything is in a bucket."""
    return bool(_folders(config) or _urls(config))


def missing_bytes(config: KohyaConfig) -> int:
    """Bytes to download before the run starts.

    Raises:
        SourceError: a file or a folder cannot be read.
    """
    files = sum(local_copy.missing_bytes(url, config.storage) for url in _urls(config))
    return files + sum(folder_copy.missing_bytes(folder, config.storage) for folder in _folders(config))


def make_copies(config: KohyaConfig, watch: Watch, locks: ExitStack) -> list[IO[str]]:
    """Download everything that is in a bucket; the locks of the copied folders, which `locks` closes.

    Raises:
        SourceError: a file or a folder cannot be read.
        DiskFullError: the disk has no room for all of it.
    """
    copies_dir().mkdir(parents=True, exist_ok=True)
    check_room(copies_dir() / "copies", missing_bytes(config))
    for url in _urls(config):
        local_copy.local_copy(url, config.storage, watch)
    return [locks.enter_context(copy_folder(each, config.storage, watch)) for each in _folders(config)]


def store_problems(config: KohyaConfig) -> Iterator[Problem]:
    """Values of `storage` that have no effect on a copy."""
    for key in WITHOUT_EFFECT:
        if getattr(config.storage, key) != StorageSection.model_fields[key].default:
            yield Problem(f"storage.{key}", "has no effect on a run of sd-scripts: remove it.")


def _urls(config: KohyaConfig) -> list[str]:
    """The files and model folders in buckets, each once."""
    urls: dict[str, None] = {}

    def note(url: str) -> str:
        urls[url] = None
        return url

    _replaced(config, note, lambda folder: folder.url)
    return list(urls)


def _folders(config: KohyaConfig) -> list[Folder]:
    """The image folders in buckets, each once."""
    folders: dict[Folder, None] = {}

    def note(folder: Folder) -> str:
        folders[folder] = None
        return folder.url

    _replaced(config, lambda url: url, note)
    return list(folders)


def _replaced(
    config: KohyaConfig, of_file: Callable[[str], str], of_folder: Callable[[Folder], str]
) -> KohyaConfig:
    """`config` with other values for its URLs."""
    model = {key: of_file(value) for key, value in config.model if is_in_store(value)}
    weights = config.network.network_weights
    network = {"network_weights": of_file(weights)} if weights and is_in_store(weights) else {}
    datasets = [
        dataset.model_copy(
            update={"subsets": [_of_subset(subset, of_file, of_folder) for subset in dataset.subsets]}
        )
        for dataset in config.datasets
    ]
    return config.model_copy(
        update={
            "model": config.model.model_copy(update=model),
            "network": config.network.model_copy(update=network),
            "datasets": datasets,
        }
    )


def _of_subset(
    subset: ImageFolder, of_file: Callable[[str], str], of_folder: Callable[[Folder], str]
) -> ImageFolder:
    suffixes = (*READ, *WITH_MORE)
    update: dict[str, Any] = {}
    metadata, masks = subset.metadata_file, subset.conditioning_data_dir
    if is_in_store(subset.image_dir):
        beside = () if metadata else (subset.caption_extension.lower(),)
        update["image_dir"] = of_folder(Folder(subset.image_dir, suffixes + beside, bool(metadata)))
    if metadata and is_in_store(metadata):
        update["metadata_file"] = of_file(metadata)
    if masks and is_in_store(masks):
        update["conditioning_data_dir"] = of_folder(Folder(masks, suffixes))
    return subset.model_copy(update=update)
