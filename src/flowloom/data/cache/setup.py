"""Open the cache of a configuration, with the keys of its images and captions."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from flowloom.config.run import RunConfig
from flowloom.data.cache.encodings import (
    ConditioningCache,
    EncodingCaches,
    PersistentCache,
    caches_without_disk,
)
from flowloom.data.cache.keys import (
    JUST_WRITTEN_NS,
    REFERENCE_RULE,
    Contents,
    Crop,
    EncodedBy,
    caption_key,
    digest,
    hash_files,
    latents_key,
)
from flowloom.data.cache.records import image_latents, video_latents
from flowloom.data.cache.records.base import RecordKind, record_kinds
from flowloom.data.cache.shard_stores import LocalShards, RemoteShards, ShardStore
from flowloom.data.cache.store import Cache
from flowloom.data.captions import CaptionRules, captions_of
from flowloom.data.dataset import Dataset
from flowloom.data.fetch.image_source import ImageSource
from flowloom.data.metadata import Row
from flowloom.data.subjects import Encoded, Instruction, Prompt, Reference, file_of
from flowloom.data.video.decode import CLIP_RULE
from flowloom.errors import ImageError, WeightsError
from flowloom.files import replacing
from flowloom.models.family import family_for, has_autoencoder
from flowloom.models.header import GGUF, INDEX, PICKLED, SAFE
from flowloom.models.weight_files import shard_names
from flowloom.storage.base import OnState, StorageSection, shown
from flowloom.storage.open import open_source

ENCODERS = "encoders.json"
"""File in the cache's folder with the hashes of the encoders' files."""
PLAIN = CaptionRules(uncond=0.0, shuffle_tags=False, tag_drop=0.0, lowercase=0.0)
"""Unchanged captions, for validation."""
_ENCODER_SUFFIXES = (*SAFE, *PICKLED, GGUF, ".json", ".model")
_STORED = {"auto": None, "bf16": torch.bfloat16, "fp32": torch.float32}


def caption_rules(config: RunConfig) -> CaptionRules:
    """The caption rules of a run."""
    data = config.dataloader
    return CaptionRules(
        uncond=data.uncond_percentage,
        shuffle_tags=data.shuffle_tags,
        tag_drop=data.tag_drop_percentage,
        lowercase=config.objective.lowercase_percentage,
        variants=config.cache.caption_variants if config.cache.text == "disk" else 0,
    )


def kept_captions(config: RunConfig, row: Row) -> set[str]:
    """The captions of `row` whose states are cached: on disk with all variants."""
    if config.cache.text != "disk":
        return {row.caption, *row.more_captions}
    return captions_of(row, caption_rules(config), config.training.master_seed)


def shard_store(
    location: str,
    storage: StorageSection | None = None,
    mirror_gib: float = 0,
    on_state: OnState | None = None,
) -> ShardStore:
    """The shards at `location`, a folder or the URL of a store; `mirror_gib` of a store are copied here.

    Raises:
        SourceError: there is no store for this kind of URL.
    """
    if "://" not in location:
        return LocalShards(Path(location))
    remote = open_source(location, storage or StorageSection(), on_state)
    spool = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flowloom" / "spool"
    return RemoteShards(remote, spool / digest(location).hex(), location, int(mirror_gib * 2**30))


def open_cache(config: RunConfig, on_state: OnState | None = None) -> Cache:
    """The cache in `cache.dir`, created if missing; `on_state` is called when its store goes down."""
    options = config.cache
    store = shard_store(options.dir, config.storage, options.mirror_gib, on_state)
    return Cache(store, None if options.limit_gib is None else int(options.limit_gib * 2**30))


def open_encoding_caches(
    config: RunConfig,
    dataset: Dataset,
    dtype: torch.dtype,
    cache: Cache | None = None,
    images: ImageSource | None = None,
) -> EncodingCaches:
    """The caches of the latents and text states of `dataset`, for encoders that compute in `dtype`.

    Raises:
        WeightsError: the files of an encoder are missing, and the cache has no hash of them.
    """
    cache = cache or open_cache(config, images.on_state if images else None)
    latents, texts = caches_without_disk(config)
    stored = _STORED[config.cache.dtype]
    files = _Files(config, dataset, cache, images or ImageSource(config.storage))
    if config.cache.latents == "disk" and has_autoencoder(family_for(config.model)):
        keys = _ImageKeys(config, files, cache, dtype)
        latents = PersistentCache(cache, keys.kind, keys, stored)
    if config.cache.text == "disk":
        # Captions that are shuffled differently in each epoch do not recur.
        adds = config.cache.caption_variants > 0 or not config.dataloader.shuffle_tags
        by = _text_encoder(config, cache, dtype)
        kinds = {name: record_kinds()[kind] for name, kind in family_for(config.model).conditioning.items()}
        texts = ConditioningCache(
            {
                name: PersistentCache(cache, kind, partial(_caption_key, kind, by, files), stored, adds)
                for name, kind in kinds.items()
            }
        )
    return EncodingCaches(latents, texts)


class _Files:
    """Digests of the images that belong to a dataset's rows."""

    def __init__(self, config: RunConfig, dataset: Dataset, cache: Cache, images: ImageSource):
        self.dataset = dataset
        self.contents = Contents(
            lambda row: dataset.source_of(row).folder, cache.store.spool, images, is_black=dataset.dummy_image
        )
        side = config.dataloader.reference_resolution
        self.reference_crop = Crop((side, side), dataset.background, REFERENCE_RULE)

    def reference(self, row: int, number: int) -> bytes:
        """Of a reference image."""
        image = file_of(self.dataset.metadata.row(row), number)
        try:
            return self.contents.of(image)
        except ImageError as error:
            raise ImageError(f"reference {shown(image.filename)}: {error}") from error.__cause__


class _ImageKeys:
    """Key and sample of a row's image or clip in a bucket, or of a reference image."""

    def __init__(self, config: RunConfig, files: _Files, cache: Cache, dtype: torch.dtype):
        dataset = files.dataset
        self.kind = video_latents.KIND if dataset.clips else image_latents.KIND
        self._files = files
        self._metadata = dataset.metadata
        self._clips = dataset.clips
        self._background = dataset.background
        weights = EncoderFiles(cache.store.spool).digest([Path(config.model.vae_path)])
        form = "mean and log-variance" if config.cache.sampling == "draw" else "mean"
        self._by = EncodedBy(weights, str(dtype), _stored_name(config, dtype), form)

    def __call__(self, image: Encoded) -> tuple[bytes, bytes]:
        if isinstance(image, Reference):
            content = self._files.reference(*image)
            by = replace(self._by, form="mean")
            return latents_key(self.kind.name, content, self._files.reference_crop, by), content
        index, bucket = image
        row = self._metadata.row(index)
        content = self._files.contents.of(row)
        crop = Crop(bucket.size, self._background)
        if self._clips and row.is_clip:
            clip = (bucket.num_frames, repr(self._clips.fps), repr(row.start_s), CLIP_RULE)
            crop = Crop(bucket.size, self._background, clip=clip)
        return latents_key(self.kind.name, content, crop, self._by), content


def _text_encoder(config: RunConfig, cache: Cache, dtype: torch.dtype) -> EncodedBy:
    files, settings = family_for(config.model).text_files(config.model)
    weights = EncoderFiles(cache.store.spool).digest(files)
    return EncodedBy(weights, str(dtype), _stored_name(config, dtype), settings)


def _caption_key(kind: RecordKind, by: EncodedBy, files: _Files, prompt: Prompt) -> tuple[bytes, bytes]:
    if not isinstance(prompt, Instruction):
        return caption_key(kind.name, prompt, by), digest(prompt)
    references = [files.reference(prompt.row, number) for number in range(prompt.num_references)]
    references.append(digest(repr(files.reference_crop)))
    return caption_key(kind.name, prompt.caption, by, references), digest(prompt.caption, *references)


def _stored_name(config: RunConfig, dtype: torch.dtype) -> str:
    return str(_STORED[config.cache.dtype] or dtype)


class EncoderFiles:
    """Hashes of encoders' files, computed once: a run with a full cache does not need the files."""

    def __init__(self, folder: Path):
        self._path = folder / ENCODERS

    def digest(self, paths: Sequence[Path]) -> bytes:
        """16-byte hash of the files at `paths`; the last known one if weights are missing.

        A file is hashed again if its size, times or inode change. The times include the inode's change time,
        which programs cannot set, so a replaced file is always noticed.

        Raises:
            WeightsError: weights are missing, and the cache has no hash of them.
        """
        known = self._read()
        name = "\n".join(os.path.normpath(path.absolute()) for path in paths)
        if name not in known:
            # The name in earlier versions, which is unknown for a link that no longer exists.
            resolved = "\n".join(str(path.resolve()) for path in paths)
            known = known | {name: known[resolved]} if resolved in known else known
        missing = next((path for path in paths if not path.exists()), None)
        files = [file for path in paths if path.exists() for file in _files(path)]
        marks = [_mark(file) for file in files]
        if name in known and (missing or _misses_weights(marks, known[name]["files"])):
            return bytes.fromhex(known[name]["digest"])
        if missing:
            raise WeightsError(
                f"{missing}: no such file, and {self._path.parent} has no hash of it. Correct the path, or "
                "copy the file there."
            )
        if name not in known or known[name]["files"] != marks:
            now = time.time_ns()
            content = hash_files(files)
            # A file that just changed may change again within one tick of the clock: hash it next time too.
            is_stable = all(now - max(mark[2:4]) >= JUST_WRITTEN_NS for mark in marks)
            entry = {"digest": content.hex(), "files": marks if is_stable else [mark[:1] for mark in marks]}
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
        # Ranks write at the same time, each to its own temporary file; the last one stays.
        partial_path = self._path.with_name(f"{ENCODERS}.{os.getpid()}.tmp")
        with replacing(self._path, partial_path) as file:
            file.write(json.dumps(content, indent=1).encode())


def _mark(file: Path) -> list[Any]:
    """Name, size, times and inode of `file`, which change with its content."""
    stat = file.stat()
    return [file.name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, stat.st_dev]


def _misses_weights(marks: list[list[Any]], known: list[list[Any]]) -> bool:
    """True if weights among the `known` files are missing, and no file was added."""
    names, before = ({mark[0] for mark in files} for files in (marks, known))
    return names < before and any(name.endswith((*SAFE, *PICKLED, GGUF)) for name in before - names)


def _files(path: Path) -> list[Path]:
    """The files at `path`: one file, those of a folder, or an index with its shards."""
    if path.is_dir():
        return sorted(file for file in path.iterdir() if file.suffix in _ENCODER_SUFFIXES and file.is_file())
    if path.name.endswith(INDEX):
        shards = [path.parent / name for name in shard_names(path)]
        return [path, *(shard for shard in shards if shard.is_file())]
    return [path]
