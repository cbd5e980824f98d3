"""The images that a tagger describes, with the place of each caption."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from flowloom.data.row_checks import BadRow, parse
from flowloom.datasets.build.items import Item, Unusable
from flowloom.datasets.build.options import BuildOptions
from flowloom.datasets.build.pairs import split_suffix
from flowloom.datasets.build.readers.folder import open_folder
from flowloom.datasets.build.readers.listing import open_listing
from flowloom.datasets.build.readers.table import REMOTE
from flowloom.datasets.build.stores import NamedStores
from flowloom.datasets.captions.bucket import BucketCaptions
from flowloom.datasets.captions.files import caption_place
from flowloom.datasets.captions.folder import FolderCaptions
from flowloom.datasets.captions.jsonl import JsonlCaptions
from flowloom.datasets.captions.store import CaptionStore
from flowloom.errors import DataError, ImageError
from flowloom.storage.base import StorageSection
from flowloom.storage.local import find_image


@dataclass(frozen=True, slots=True)
class Target:
    """An image to be described."""

    name: str
    """Path below the folder, or URL."""
    places: tuple[str, ...]
    """Of its captions in the store: one file, or one or several lines."""


class ImageSet(Protocol):
    """Images with a store for their captions."""

    @property
    def store(self) -> CaptionStore:
        """Of the captions."""
        ...

    unusable: list[Unusable]
    writes_at_once: bool
    """True if captions are written batch by batch; False if all are written at the end."""

    def targets(self) -> list[Target]:
        """Every image, in order."""
        ...

    def image(self, target: Target) -> bytes:
        """The content of the image file."""
        ...


class FolderImages:
    """An `ImageSet`: the images of a folder, with captions in files beside them."""

    writes_at_once = True

    def __init__(self, folder: Path, suffix: str):
        """
        Raises:
            DataError: there is no such folder.
        """
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder.")
        self.folder = folder.resolve()
        self.suffix = suffix
        self.store = FolderCaptions(self.folder, (suffix,))
        self.unusable: list[Unusable] = []

    def targets(self) -> list[Target]:
        """The images, depth first and by name."""
        entries = list(open_folder(self.folder, BuildOptions(caption_suffixes=(self.suffix,))).items)
        self.unusable += (entry for entry in entries if isinstance(entry, Unusable))
        items = [entry for entry in entries if isinstance(entry, Item)]
        sidecars = {
            item.filename: Path(item.sidecar.key).relative_to(self.folder).as_posix() if item.sidecar else ""
            for item in items
        }
        return _targets(sidecars, self.suffix)

    def image(self, target: Target) -> bytes:
        """The content of the file.

        Raises:
            ImageError: it is not below the folder.
        """
        path = (self.folder / target.name).resolve()
        if not path.is_relative_to(self.folder):
            raise ImageError(f"{target.name} leads out of {self.folder}")
        return path.read_bytes()


class BucketImages:
    """An `ImageSet`: the images of a bucket, with captions in objects beside them."""

    writes_at_once = True

    def __init__(self, url: str, suffix: str, storage: StorageSection):
        """
        Raises:
            SourceError, CaptionError: the bucket cannot be opened.
        """
        self.url = f"{url.rstrip('/')}/"
        self.suffix = suffix
        self.store = BucketCaptions(url, storage, (suffix,))
        self.unusable: list[Unusable] = []

    def targets(self) -> list[Target]:
        """The images by folder and name, without those whose captions are in a JSONL of the bucket."""
        options = BuildOptions(caption_suffixes=(self.suffix,))
        sidecars: dict[str, str] = {}
        for entry in open_listing(self.url, self.store.objects, options).items:
            if isinstance(entry, Unusable):
                self.unusable.append(entry)
            elif isinstance(entry, Item) and entry.captions is not None:
                reason = "its caption is in a JSONL of the bucket: download the JSONL, and describe that"
                self.unusable.append(Unusable(entry.where, reason))
            elif isinstance(entry, Item):
                sidecar = entry.sidecar.key.removeprefix(self.url) if entry.sidecar else ""
                sidecars[entry.filename.removeprefix(self.url)] = sidecar
        return _targets(sidecars, self.suffix)

    def image(self, target: Target) -> bytes:
        """The content of the object."""
        return self.store.objects.read(target.name)


def _targets(sidecars: dict[str, str], suffix: str) -> list[Target]:
    """Images by name, with the caption file of each; "" for those that have none yet."""
    stems = Counter(split_suffix(name)[0] for name in sidecars)
    return [
        Target(name, (file or caption_place(name, suffix, is_only=stems[split_suffix(name)[0]] == 1),))
        for name, file in sidecars.items()
    ]


class JsonlImages:
    """An `ImageSet`: the images of a JSONL. An image of several rows is described once."""

    writes_at_once = False

    def __init__(self, jsonl: Path, folder: Path | None, storage: StorageSection):
        """
        Args:
            folder: of the images; None: that of the JSONL.
            storage: of images with URLs.

        Raises:
            DataError: there is no such file.
        """
        if not jsonl.is_file():
            raise DataError(f"{jsonl}: no such file.")
        path = jsonl.resolve()
        # The folder that a build recorded beside it is not used: it may be outside the studio's folders.
        self.folder = folder or path.parent
        self.store = JsonlCaptions(path)
        self.unusable: list[Unusable] = []
        self._stores = NamedStores(storage)

    def targets(self) -> list[Target]:
        """The images, in the order of their first rows."""
        places: dict[str, list[str]] = defaultdict(list)
        for place, line in self.store.lines():
            row = parse(line)
            if row.filename:
                places[row.filename].append(place)
            else:
                reason = row.reason if isinstance(row, BadRow) and not row.fields else "it has no filename"
                self.unusable.append(Unusable(self.store.label(place), reason))
        return [Target(name, tuple(lines)) for name, lines in places.items()]

    def image(self, target: Target) -> bytes:
        """The content of the file below the folder, or at the URL."""
        if not target.name.startswith(REMOTE):
            return find_image(self.folder, target.name).read_bytes()
        return self._stores.read(target.name)
