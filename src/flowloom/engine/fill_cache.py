"""`flowloom cache`: fill the cache before a run, list its content, check and prune it."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from flowloom.config.remote_models import with_local_models
from flowloom.config.run import RunConfig
from flowloom.data.cache.encodings import (
    ConditioningCache,
    EncodingCaches,
    NoCache,
    PersistentCache,
)
from flowloom.data.cache.records import image_latents, video_latents
from flowloom.data.cache.setup import PLAIN, caption_rules, open_cache, open_encoding_caches
from flowloom.data.cache.store import Cache, Stats
from flowloom.data.captions import captions_of, vary
from flowloom.data.fetch.image_source import ImageSource
from flowloom.data.loader import Dataset, Loader, Skipped
from flowloom.data.metadata import Row
from flowloom.data.order import DEFAULT_BATCHING
from flowloom.data.subjects import Encoded, Prompt, Reference, prompt_of
from flowloom.datasets.load import load_dataset
from flowloom.engine.build import load_encoders
from flowloom.engine.encode import Encoders
from flowloom.errors import ConfigError, Denied, ImageError, Problem, SourceError, Unavailable
from flowloom.models.device import choose_device, encoder_dtype
from flowloom.models.family import family_for

CAPTIONS_AT_A_TIME = 256
NO_SUCH_FILE = {errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL}
"""Error numbers of names that lead to no file."""
OnProgress = Callable[[str, int, int], None]
"""Called with what is encoded, the number done, and the total."""


@dataclass
class Filled:
    """The result of filling."""

    images: int = 0
    captions: int = 0
    skipped: list[Skipped] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    """The JSONLs of the skipped rows, by number of the dataset."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Of the main thread by stage: reading images (waiting for the decoding threads), VAE, reading captions,
    text encoder, writing."""
    full: str | None = None
    """The reason why not everything was cached."""

    @property
    def slowest(self) -> tuple[str, float]:
        """The slowest stage, and its share of the time."""
        stage = max(self.seconds, key=lambda name: self.seconds[name])
        return stage, self.seconds[stage] / max(sum(self.seconds.values()), 1e-9)


class _Clock:
    """Seconds by stage; the cache's writing is a separate stage."""

    def __init__(self, seconds: dict[str, float], cache: Cache):
        self._seconds = seconds
        self._cache = cache
        self._last, self._written = time.perf_counter(), cache.writing_s

    def lap(self, stage: str) -> None:
        """Count the time since the last lap as `stage`, less the time spent writing."""
        now, written = time.perf_counter(), self._cache.writing_s
        writing = written - self._written
        for name, seconds in ((stage, now - self._last - writing), ("writing", writing)):
            self._seconds[name] = self._seconds.get(name, 0.0) + seconds
        self._last, self._written = now, written


def fill(
    config: RunConfig,
    on_progress: OnProgress = lambda _what, _done, _total: None,
    *,
    rank: int = 0,
    world_size: int = 1,
) -> Filled:
    """Encode everything that the run in `config` needs and the cache does not hold.

    First images, then captions: the VAE and the text encoder are never in memory together. Each of several
    ranks encodes its share, into separate shards.

    Raises:
        ConfigError, DataError, WeightsError: something it names is missing or does not fit.
    """
    _require_disk(config)
    config = with_local_models(config)
    device = choose_device(config.parallel.device)
    if device.type == "cuda" and world_size > 1:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", rank)) % torch.cuda.device_count())
    if config.parallel.num_threads:
        torch.set_num_threads(config.parallel.num_threads)
    dataset = load_dataset(config)
    encoders = load_encoders(config.model, config, device, dataset)
    filled = Filled(files=[str(source.path) for source in dataset.sources])
    filler = _Filler(config, dataset, encoders, rank, world_size, filled, on_progress)
    latents, texts = encoders.caches
    if isinstance(latents, PersistentCache):
        filler.add_images(latents)
    encoders.free()
    if texts.on_disk and not filled.full:
        filler.add_captions(texts)
    encoders.free()
    dataset.check_skipped({f"{filled.files[row.dataset]}:{row.line}": row.reason for row in filled.skipped})
    return filled


def _require_disk(config: RunConfig) -> None:
    if not config.cache.is_on_disk:
        message = 'is "disk" neither for latents nor for text: set cache.latents, cache.text or both.'
        raise ConfigError("the configuration", [Problem("cache", message)])


class _Index(NoCache[Encoded]):
    """The index of a cache: cached images are recognized without reading their latents."""

    def __init__(self, cache: PersistentCache[Encoded]):
        self.has = cache.knows


@dataclass(frozen=True)
class _Filler:
    """Encodes the share of one rank."""

    config: RunConfig
    dataset: Dataset
    encoders: Encoders
    rank: int
    world_size: int
    filled: Filled
    on_progress: OnProgress

    def add_images(self, cache: PersistentCache[Encoded]) -> None:
        """Encode the missing images until the cache is full."""
        loader = self._loader(cache)
        clock, total = _Clock(self.filled.seconds, cache.records), loader.num_batches(0)
        for batch in loader.batches(0):
            clock.lap("reading images")
            missing = [sample for sample in batch.samples if sample.pixels is not None]
            self.encoders.planes(missing, batch.bucket)
            for sample in batch.samples:
                if sample.references:
                    self.encoders.reference_planes(sample)
            clock.lap("VAE")
            self.filled.skipped += batch.skipped
            self.filled.images += len(missing)
            self.on_progress("images", batch.index + 1, total)
            if cache.records.full:
                break
        self._finish(cache.records)

    def add_captions(self, texts: ConditioningCache) -> None:
        """Encode the missing captions until the cache is full."""
        records = texts.on_disk[0].records
        clock = _Clock(self.filled.seconds, records)
        for cache in texts.on_disk:
            cache.adds = True
        waiting = self._missing_captions(texts)
        while not records.full and (captions := list(islice(waiting, CAPTIONS_AT_A_TIME))):
            clock.lap("reading captions")
            self.encoders.texts(captions)
            clock.lap("text encoder")
            self.filled.captions += len(captions)
        self._finish(records)

    def _missing_captions(self, texts: ConditioningCache) -> Iterator[Prompt]:
        seen, total = set[bytes](), len(self.dataset.metadata)
        for row, caption in captions_shown(self.config, self.dataset):
            try:
                key, _ = texts.on_disk[0].key_of(caption)
            except ImageError:
                continue  # a reference image is missing: the row was skipped with its image
            # Ranks share captions by their keys, so that no two encode the same one.
            if key in seen or key[0] % self.world_size != self.rank:
                continue
            seen.add(key)
            if not texts.knows(caption):
                self.on_progress("captions", row, total)
                yield caption

    def _finish(self, records: Cache) -> None:
        records.seal()
        self.filled.full = records.full

    def _loader(self, cache: PersistentCache[Encoded]) -> Loader:
        config, data = self.config, self.config.dataloader
        return Loader(
            # Every row once, also those that are not in every epoch.
            dataset=replace(self.dataset, batching=DEFAULT_BATCHING),
            rules=PLAIN,
            seed=0,
            rank=self.rank,
            world_size=self.world_size,
            batch_size=max(config.training.cache_minibatch, 8) * self.world_size,
            threads=max(1, data.num_workers * data.thread_per_worker),
            prefetch=max(2, data.prefetch_factor),
            latents=_Index(cache),
            references=self.encoders.reader,
            images=ImageSource(config.storage),
        )


def captions_shown(config: RunConfig, dataset: Dataset) -> Iterator[tuple[int, Prompt]]:
    """All captions that the run may show, with the number of their row."""
    yield 0, ""
    rules, seed = caption_rules(config), config.training.master_seed
    for index in np.flatnonzero(dataset.row_buckets >= 0):
        row = dataset.metadata.row(int(index))
        held_out = bool(dataset.held_out[index])
        captions = [vary(row, 0, PLAIN, seed)] if held_out else sorted(captions_of(row, rules, seed))
        for caption in [*captions, ""] if row.references else captions:
            yield int(index), prompt_of(row, caption)


def stats(config: RunConfig) -> Stats:
    """The content of the cache in `cache.dir`."""
    return open_cache(config).stats()


def verify(config: RunConfig) -> Iterator[str]:
    """Read every record and return the damaged ones."""
    return open_cache(config).verify()


class Pruned(NamedTuple):
    """The result of pruning."""

    dropped: int
    """Records."""
    stay: int
    unjudged: str
    """The reason why no latents were dropped: an image that could not be checked (its store is down)."""


def prune(configs: Sequence[RunConfig]) -> Pruned:
    """Drop the records that none of `configs` uses; all name the same cache.

    The key of latents depends on the image's content. If one image cannot be read, any record may be its
    latents, so all of them are kept.

    Raises:
        ConfigError: they name several caches.
    """
    folders = {config.cache.dir for config in configs}
    if len(folders) != 1:
        message = f"these configurations name {len(folders)} caches; prune one at a time."
        raise ConfigError("the configurations", [Problem("cache.dir", message)])
    cache = open_cache(configs[0])
    kept, unjudged, kinds = set[bytes](), "", set[str]()
    for config in configs:
        texts = family_for(config.model).conditioning.values()
        for used, of_kinds in ((_used_latents, _LATENTS), (_used_texts, texts)):
            try:
                kept.update(used(config, cache))
            except _Unjudged as error:
                unjudged = str(error)
                kinds.update(of_kinds)
    return Pruned(*cache.prune(kept.__contains__, kinds), unjudged)


_LATENTS = (image_latents.KIND.name, video_latents.KIND.name)


class _Unjudged(Exception):
    """An image can be neither read nor known to be deleted."""


def _caches(config: RunConfig, cache: Cache) -> tuple[Dataset, EncodingCaches]:
    device = choose_device(config.parallel.device)
    dtype = encoder_dtype(device)
    dataset = load_dataset(config)
    # Do not wait for a store that is down: records that cannot be judged are kept.
    images = ImageSource(config.storage.model_copy(update={"patience_minutes": 0.0}))
    return dataset, open_encoding_caches(config, dataset, dtype, cache, images)


def _used_latents(config: RunConfig, cache: Cache) -> Iterator[bytes]:
    """Keys of the latents that `config` uses.

    Raises:
        _Unjudged: an image cannot be checked.
    """
    dataset, (latents, _) = _caches(config, cache)
    if not isinstance(latents, PersistentCache):
        return
    for index in map(int, np.flatnonzero(dataset.row_buckets >= 0)):
        bucket: int = dataset.row_buckets[index]
        yield from _keys(dataset, index, latents, (index, dataset.buckets[bucket]))
        for number in range(int(dataset.metadata.num_references[index])):
            yield from _keys(dataset, index, latents, Reference(index, number))


def _keys(dataset: Dataset, index: int, cache: PersistentCache[Any], subject: Hashable) -> Iterator[bytes]:
    """The key of `subject`, which belongs to row `index`; none if its file is gone.

    Raises:
        _Unjudged: the file cannot be checked.
    """
    try:
        yield cache.key_of(subject)[0]
    except (ImageError, SourceError) as error:
        row = dataset.metadata.row(index)
        if not _is_gone(row, dataset.source_of(row).folder, error):
            place = f"{dataset.source_of(row).path}:{row.line}"
            raise _Unjudged(f"{place}: {error}") from None


def _is_gone(row: Row, folder: str, error: ImageError | SourceError) -> bool:
    """True if the unreadable image of `row` no longer exists; then no record is kept for it."""
    cause = error if isinstance(error, SourceError) else error.__cause__
    if isinstance(cause, Denied | Unavailable):
        return False
    if isinstance(cause, OSError):
        return cause.errno in NO_SUCH_FILE
    # If the whole folder is missing, a disk may not be mounted.
    return ImageSource.is_remote(row, folder) or Path(folder.removeprefix("file://")).is_dir()


def _used_texts(config: RunConfig, cache: Cache) -> Iterator[bytes]:
    """Keys of the captions' states that `config` uses.

    Raises:
        _Unjudged: a reference image cannot be checked.
    """
    dataset, (_, texts) = _caches(config, cache)
    if texts.on_disk:
        for index, caption in captions_shown(config, dataset):
            for each in texts.on_disk:
                yield from _keys(dataset, index, each, caption)
