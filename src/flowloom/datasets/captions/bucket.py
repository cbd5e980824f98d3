"""Captions in objects beside the images of a bucket."""

from __future__ import annotations

import secrets

from flowloom.datasets.captions.files import CaptionFiles
from flowloom.datasets.captions.formats import SUFFIXES
from flowloom.datasets.captions.store import CaptionError, Change
from flowloom.errors import Denied, NotFound
from flowloom.storage.base import StorageSection
from flowloom.storage.objects import Objects
from flowloom.storage.open import open_source


class BucketCaptions(CaptionFiles):
    """A `CaptionStore`; places are names of objects below the URL.

    An object is replaced only if its etag is that of the content that was read, so that a change by another
    program in between is kept.
    """

    def __init__(self, url: str, storage: StorageSection, suffixes: tuple[str, ...] = SUFFIXES):
        """
        Raises:
            CaptionError: the URL is not that of a bucket.
            SourceError: the bucket cannot be opened.
        """
        super().__init__(suffixes)
        store = open_source(url, storage)
        if not isinstance(store, Objects):
            raise CaptionError(f"{store.root} is not a bucket.", "Use s3://, gs:// or az://.")
        self.objects = store

    def require_access(self) -> None:
        """Check that captions can be written, without writing one.

        Raises:
            CaptionError: the keys may not write, or the store does not compare etags.
        """
        # An object that does not exist has no etag, so nothing is written.
        name = f".flowloom-{secrets.token_hex(8)}"
        try:
            etag = self.objects.write_if(name, b"", '"00000000000000000000000000000000"')
        except Denied as error:
            hint = "Use keys with permission to write, or copy the dataset to a bucket of yours."
            message = f"{self.objects.root}: captions cannot be written with these keys: {error}"
            raise CaptionError(message, hint) from error
        if etag is not None:
            self.objects.delete(name)
            raise CaptionError(
                f"{self.objects.root}: the store does not compare etags (If-Match), so that changes by other "
                "programs could be overwritten.",
                "Build a JSONL with 'flowloom dataset build' and edit that.",
            )

    def read(self, place: str) -> bytes | None:
        """The content of the object; None if it does not exist.

        Raises:
            SourceError: it cannot be read.
        """
        return self._versioned(place)[0]

    def _versioned(self, place: str) -> tuple[bytes | None, str | None]:
        try:
            return self.objects.read_versioned(place)
        except NotFound:
            return None, None

    def replace(self, change: Change) -> bool:
        data, etag = self._versioned(change.place)
        if data != change.before:
            return False
        # An object cannot be deleted by its etag: it becomes empty first, which is no caption either.
        content = change.after or b""
        if self.objects.write_if(change.place, content, etag) is None and not (
            # A write whose response was lost is repeated, and finds another etag.
            self.read(change.place) == content != change.before
        ):
            return False
        if change.after is None:
            self.objects.delete(change.place)
        return True

    def label(self, place: str) -> str:
        """The URL of the object."""
        return f"{self.objects.root}/{place}"
