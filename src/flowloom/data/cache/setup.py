"""Opens the cache on disk that a RunConfig names, and computes the keys of images and captions."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from flowloom.config.run import RunConfig
from flowloom.data.cache.encodings import (
    ConditioningCache,
    EncodingCaches,
    ImageInBucket,
    PersistentCache,
    caches_without_disk,
)
from flowloom.data.cache.keys import (
    JUST_WRITTEN_NS,
    Contents,
    Crop,
    EncodedBy,
    caption_key,
    digest,
    hash_files,
    latents_key,
)
from flowloom.data.cache.records import image_latents
from flowloom.data.cache.records.base import RecordKind, record_kinds
from flowloom.data.cache.shard_stores import LocalShards, RemoteShards, ShardStore
from flowloom.data.cache.store import Cache
from flowloom.data.captions import CaptionRules, captions_of
from flowloom.data.dataset import Dataset
from flowloom.data.fetch.image_source import ImageSource
from flowloom.data.metadata import Row
from flowloom.errors import WeightsError
from flowloom.files import replacing
from flowloom.models.family import family_for
from flowloom.models.weights import INDEX, PICKLED, SAFE, shard_names
from flowloom.storage.base import OnState, StorageSection
from flowloom.storage.open import open_source

ENCODERS = "encoders.json"
"""In the cache's folder: what was at the encoders' paths when they were last hashed."""
PLAIN = CaptionRules(uncond=0.0, shuffle_tags=False, tag_drop=0.0, lowercase=0.0)
"""Captions as they stand, for validation."""
_PARTS = (*SAFE, *PICKLED, ".json", ".model")
_STORED = {"auto": None, "bf16": torch.bfloat16, "fp32": torch.float32}


def caption_rules(config: RunConfig) -> CaptionRules:
    """What the run makes of captions."""
    data = config.dataloader
    return CaptionRules(
        uncond=data.uncond_percentage,
        shuffle_tags=data.shuffle_tags,
        tag_drop=data.tag_drop_percentage,
        lowercase=config.objective.lowercase_percentage,
        variants=config.cache.caption_variants if config.cache.text == "disk" else 0,
    )


def kept_captions(config: RunConfig, row: Row) -> set[str]:
    """The captions whose states a cache keeps for `row`: on disk each in all its variants."""
    if config.cache.text != "disk":
        return {row.caption, *row.more_captions}
    return captions_of(row, caption_rules(config), config.training.master_seed)


def shard_store(
    place: str,
    storage: StorageSection | None = None,
    mirror_gib: float = 0,
    on_state: OnState | None = None,
) -> ShardStore:
    """The shards at `place`, a folder or the address of a store, of which so much is copied to this machine.

    Raises:
        SourceError: no store is known by this kind of address.
    """
    if "://" not in place:
        return LocalShards(Path(place))
    remote = open_source(place, storage or StorageSection(), on_state)
    spool = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flowloom" / "spool"
    return RemoteShards(remote, spool / digest(place).hex(), place, int(mirror_gib * 2**30))


def open_cache(config: RunConfig, on_state: OnState | None = None) -> Cache:
    """The cache in `cache.dir`, made if there is none; `on_state` hears when its store is down."""
    keep = config.cache
    store = shard_store(keep.dir, config.storage, keep.mirror_gib, on_state)
    return Cache(store, None if keep.limit_gib is None else int(keep.limit_gib * 2**30))


def open_encoding_caches(
    config: RunConfig,
    dataset: Dataset,
    dtype: torch.dtype,
    cache: Cache | None = None,
    images: ImageSource | None = None,
) -> EncodingCaches:
    """Where the latents and states of `dataset` are kept, when encoders compute in `dtype`.

    Raises:
        WeightsError: an encoder is not there, and this cache has never seen it.
    """
    cache = cache or open_cache(config, images.on_state if images else None)
    latents, texts = caches_without_disk(config)
    stored = _STORED[config.cache.dtype]
    if config.cache.latents == "disk":
        keys = _ImageKeys(config, dataset, cache, dtype, images or ImageSource(config.storage))
        latents = PersistentCache(cache, image_latents.KIND, keys, stored)
    if config.cache.text == "disk":
        # Captions that are shuffled anew each epoch never come back.
        adds = config.cache.caption_variants > 0 or not config.dataloader.shuffle_tags
        by = _text_encoder(config, cache, dtype)
        kinds = {name: record_kinds()[kind] for name, kind in family_for(config.model).conditioning.items()}
        texts = ConditioningCache(
            {
                name: PersistentCache(cache, kind, partial(_caption_key, kind, by), stored, adds)
                for name, kind in kinds.items()
            }
        )
    return EncodingCaches(latents, texts)


class _ImageKeys:
    """Key and sample of a row's image in a bucket."""

    def __init__(
        self, config: RunConfig, dataset: Dataset, cache: Cache, dtype: torch.dtype, images: ImageSource
    ):
        self._metadata = dataset.metadata
        self._background = dataset.background
        self._contents = Contents(
            lambda row: dataset.source_of(row).folder, cache.store.spool, images, is_black=dataset.dummy_image
        )
        weights = EncoderFiles(cache.store.spool).digest([Path(config.model.vae_path)])
        form = "mean and log-variance" if config.cache.sampling == "draw" else "mean"
        self._by = EncodedBy(weights, str(dtype), _stored_name(config, dtype), form)

    def __call__(self, image: ImageInBucket) -> tuple[bytes, bytes]:
        row, size = image
        content = self._contents.of(self._metadata.row(row))
        crop = Crop(size, self._background)
        return latents_key(image_latents.KIND.name, content, crop, self._by), content


def _text_encoder(config: RunConfig, cache: Cache, dtype: torch.dtype) -> EncodedBy:
    files, settings = family_for(config.model).text_files(config.model)
    weights = EncoderFiles(cache.store.spool).digest(files)
    return EncodedBy(weights, str(dtype), _stored_name(config, dtype), settings)


def _caption_key(kind: RecordKind, by: EncodedBy, caption: str) -> tuple[bytes, bytes]:
    return caption_key(kind.name, caption, by), digest(caption)


def _stored_name(config: RunConfig, dtype: torch.dtype) -> str:
    return str(_STORED[config.cache.dtype] or dtype)


class EncoderFiles:
    """Hashes of encoders' files, taken once: a run whose cache is full needs the files no more."""

    def __init__(self, folder: Path):
        self._path = folder / ENCODERS

    def digest(self, paths: Sequence[Path]) -> bytes:
        """16 bytes of the content of the files at `paths`; where weights are gone, of what was there last.

        Size, times and inode of each file say whether it was hashed before. The time of the last change of
        the inode is among them, which no program sets: a file that takes the place of another is noticed.

        Raises:
            WeightsError: weights are gone, and this cache has never seen them.
        """
        known = self._read()
        name = "\n".join(os.path.normpath(path.absolute()) for path in paths)
        if name not in known:
            # As earlier versions named them; of a link that is gone nobody can tell where it led.
            resolved = "\n".join(str(path.resolve()) for path in paths)
            known = known | {name: known[resolved]} if resolved in known else known
        gone = next((path for path in paths if not path.exists()), None)
        files = [file for path in paths if path.exists() for file in _files(path)]
        marks = [_mark(file) for file in files]
        if name in known and (gone or _lacks_weights(marks, known[name]["files"])):
            return bytes.fromhex(known[name]["digest"])
        if gone:
            raise WeightsError(
                f"{gone}: no such file, and {self._path.parent} does not know what it was. Correct the "
                "path, or copy the file there."
            )
        if name not in known or known[name]["files"] != marks:
            now = time.time_ns()
            content = hash_files(files)
            # What changed a moment ago may change again within one tick of the clock: hash it next time too.
            settled = all(now - max(mark[2:4]) >= JUST_WRITTEN_NS for mark in marks)
            entry = {"digest": content.hex(), "files": marks if settled else [mark[:1] for mark in marks]}
            self._write(self._read() | {name: entry})
            return content
        return bytes.fromhex(known[name]["digest"])

    def _read(self) -> dict[str, dict[str, Any]]:
        try:
            return json.loads(self._path.read_text())
        except (FileNotFoundError, ValueError):
            return {}

    def _write(self, content: dict[str, dict[str, Any]]) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # Ranks write it at the same time: each under a name of its own, and the last one stays.
        partial_path = self._path.with_name(f"{ENCODERS}.{os.getpid()}.tmp")
        with replacing(self._path, partial_path) as file:
            file.write(json.dumps(content, indent=1).encode())


def _mark(file: Path) -> list[Any]:
    """What changes with the content of `file`."""
    stat = file.stat()
    return [file.name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, stat.st_dev]


def _lacks_weights(marks: list[list[Any]], known: list[list[Any]]) -> bool:
    """Whether weights that were among the `known` files are gone, and nothing has taken their place."""
    names, before = ({mark[0] for mark in files} for files in (marks, known))
    return names < before and any(name.endswith((*SAFE, *PICKLED)) for name in before - names)


def _files(path: Path) -> list[Path]:
    """The files that make up what is at `path`: a file, a folder, or an index with its shards."""
    if path.is_dir():
        return sorted(file for file in path.iterdir() if file.suffix in _PARTS and file.is_file())
    if path.name.endswith(INDEX):
        shards = [path.parent / name for name in shard_names(path)]
        return [path, *(shard for shard in shards if shard.is_file())]
    return [path]
