"""What lies below an address in an object store or on a web server, with captions beside the pictures."""

from __future__ import annotations

import urllib.parse
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

from flowloom.data.prepare.items import (
    PICTURES,
    Found,
    Item,
    Reading,
    Unusable,
    shown,
    wrong_name,
)
from flowloom.data.prepare.options import BuildOptions
from flowloom.data.prepare.pairs import PairRule, pair, split_suffix
from flowloom.data.prepare.stores import Store, etag_of


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
    wanted = PICTURES.union(options.caption_suffixes)
    folders: dict[str, dict[str, StoreObject]] = defaultdict(dict)
    for entry in store.list(""):
        path = PurePosixPath(entry.name)
        if split_suffix(path.name)[1] in wanted and not any(part.startswith(".") for part in path.parts):
            folder = entry.name[: -len(path.name)]
            folders[folder][path.name] = StoreObject(store, url, entry.name, entry.size, etag_of(entry))
    rule = options.caption_rule
    for folder in sorted(folders):
        for found in pair(
            folders.pop(folder), folder, PairRule(options.caption_suffixes), lambda one: not one.size
        ):
            if not isinstance(found, tuple):
                yield found
                continue
            name, picture, sidecar = found
            reason = wrong_name(folder + name)
            if reason:
                yield Unusable(shown(folder + name), reason)
                continue
            yield Item(
                shown(folder + name),
                address(url, folder + name),
                picture,
                sidecar=sidecar,
                rule=rule,
                is_url_based=True,
            )


def address(url: str, name: str) -> str:
    """The address of the object `name` below `url`: escaped for the web, as it is for object stores."""
    is_web = url.startswith(("http://", "https://"))
    return f"{url.rstrip('/')}/{urllib.parse.quote(name) if is_web else name}"
