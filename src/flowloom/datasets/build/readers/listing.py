"""Lists images and their captions below an address in an object store or on a web server."""

from __future__ import annotations

import urllib.parse
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from flowloom.datasets.build.items import (
    PICTURES,
    Found,
    Item,
    Reading,
    Unusable,
    shown,
    wrong_name,
)
from flowloom.datasets.build.options import BuildOptions
from flowloom.datasets.build.pairs import PairRule, pair, split_suffix
from flowloom.datasets.build.readers.stored_rows import StoredRow, is_rows, stored_rows
from flowloom.datasets.build.stores import Entry, Store, etag_of


@dataclass(frozen=True, slots=True)
class StoreObject:
    """An object in a store."""

    store: Store
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


def open_listing(url: str, store: Store, options: BuildOptions) -> Reading:
    """The pictures below `url`, which `store` has been opened for."""
    return Reading("listing", None, _read(f"{url.rstrip('/')}/", store, options))


def _read(url: str, store: Store, options: BuildOptions) -> Iterator[Found]:
    folders, images, tables = _listed(url, store, options)
    rows = stored_rows(store, tables, images) if tables else {}
    pair_rule = PairRule(options.caption_suffixes)
    for folder in sorted(folders):
        for found in pair(folders.pop(folder), folder, pair_rule, lambda one: not one.size):
            if isinstance(found, tuple):
                yield from _items(url, folder + found[0], found[1:], rows, options)
            else:
                yield found


def _listed(
    url: str, store: Store, options: BuildOptions
) -> tuple[dict[str, dict[str, StoreObject]], set[str], list[Entry]]:
    """Images and caption files by folder; the names of the images; JSONLs that may describe them."""
    wanted = PICTURES.union(options.caption_suffixes)
    folders: dict[str, dict[str, StoreObject]] = defaultdict(dict)
    images: set[str] = set()
    tables: list[Entry] = []
    for entry in store.list(""):
        path = PurePosixPath(entry.name)
        suffix = split_suffix(path.name)[1]
        if any(part.startswith(".") for part in path.parts):
            continue
        if suffix in wanted:
            folder = entry.name[: -len(path.name)]
            folders[folder][path.name] = StoreObject(store, url, entry.name, entry.size, etag_of(entry))
        if suffix in PICTURES:
            images.add(entry.name)
        elif is_rows(entry.name):
            tables.append(entry)
    return folders, images, tables


def _items(
    url: str,
    name: str,
    found: tuple[StoreObject, StoreObject | None],
    rows: dict[str, list[StoredRow]],
    options: BuildOptions,
) -> Iterator[Found]:
    """The image `name`: with its caption file, or with the rows that a JSONL in the store has of it."""
    picture, sidecar = found
    reason = wrong_name(name)
    if reason:
        yield Unusable(shown(name), reason)
        return
    rule = options.caption_rule
    item = Item(shown(name), address(url, name), picture, sidecar=sidecar, rule=rule, is_url_based=True)
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
    """The address of the object `name` below `url`: escaped for the web, as it is for object stores."""
    is_web = url.startswith(("http://", "https://"))
    return f"{url.rstrip('/')}/{urllib.parse.quote(name) if is_web else name}"
