"""Lists images and their captions below an address in an object store or on a web server."""

from __future__ import annotations

import urllib.parse
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from flowloom.datasets.build.items import (
    Item,
    OpenedSource,
    ReaderOutput,
    Unusable,
    name_problem,
    shown,
)
from flowloom.datasets.build.options import BuildOptions
from flowloom.datasets.build.pairs import PairRule, pair, split_suffix
from flowloom.datasets.build.readers.stored_rows import StoredRow, is_rows, stored_rows
from flowloom.datasets.build.stores import ListedObject, ObjectStore, etag_of
from flowloom.image_suffixes import IMAGE_SUFFIXES, MEDIA_SUFFIXES


@dataclass(frozen=True, slots=True)
class StoreObject:
    """An object in a store."""

    store: ObjectStore
    url: str
    name: str
    size: int
    stamp: str

    @property
    def key(self) -> str:
        """Its address."""
        return f"{self.url}{self.name}"

    def head(self, length: int) -> bytes:
        """At most the first `length` bytes, by a range request."""
        return self.store.read_range(self.name, 0, min(length, self.size)) if self.size else b""

    def read(self) -> bytes:
        """All bytes."""
        return self.store.read(self.name)


def open_listing(url: str, store: ObjectStore, options: BuildOptions) -> OpenedSource:
    """The images below `url`, in `store`."""
    return OpenedSource("listing", None, _read(f"{url.rstrip('/')}/", store, options))


def _read(url: str, store: ObjectStore, options: BuildOptions) -> Iterator[ReaderOutput]:
    folders, images, tables = _listed(url, store, options)
    rows = stored_rows(store, tables, images) if tables else {}
    pair_rule = PairRule(options.caption_suffixes, with_videos=options.with_videos)
    for folder in sorted(folders):
        for paired in pair(folders.pop(folder), folder, pair_rule, lambda file: not file.size):
            if isinstance(paired, tuple):
                yield from _items(url, folder + paired[0], paired[1:], rows, options)
            else:
                yield paired


def _listed(
    url: str, store: ObjectStore, options: BuildOptions
) -> tuple[dict[str, dict[str, StoreObject]], set[str], list[ListedObject]]:
    """Images and caption files by folder; the names of the images; JSONLs that may describe them."""
    media = MEDIA_SUFFIXES if options.with_videos else IMAGE_SUFFIXES
    suffixes = media.union(options.caption_suffixes)
    folders: dict[str, dict[str, StoreObject]] = defaultdict(dict)
    images: set[str] = set()
    tables: list[ListedObject] = []
    for entry in store.list(""):
        path = PurePosixPath(entry.name)
        suffix = split_suffix(path.name)[1]
        if any(part.startswith(".") for part in path.parts):
            continue
        if suffix in suffixes:
            folder = entry.name[: -len(path.name)]
            folders[folder][path.name] = StoreObject(store, url, entry.name, entry.size, etag_of(entry))
        if suffix in media:
            images.add(entry.name)
        elif is_rows(entry.name):
            tables.append(entry)
    return folders, images, tables


def _items(
    url: str,
    name: str,
    files: tuple[StoreObject, StoreObject | None],
    rows: dict[str, list[StoredRow]],
    options: BuildOptions,
) -> Iterator[ReaderOutput]:
    """The image `name` with its caption file, or with its rows in a JSONL of the store."""
    image, sidecar = files
    reason = name_problem(name)
    if reason:
        yield Unusable(shown(name), reason)
        return
    rule = options.caption_rule
    item = Item(shown(name), address(url, name), image, sidecar=sidecar, rule=rule, is_url_based=True)
    if sidecar or name not in rows:
        yield item
        return
    for row in rows[name]:
        yield replace(
            item,
            captions=row.captions,
            is_tag_based=row.is_tag_based,
            loss_weight=row.loss_weight,
            repeats=row.repeats,
        )


def address(url: str, name: str) -> str:
    """The address of the object `name` below `url`; escaped for the web, unchanged for object stores."""
    is_web = url.startswith(("http://", "https://"))
    return f"{url.rstrip('/')}/{urllib.parse.quote(name) if is_web else name}"
