"""Captions in files beside images, wherever the files are."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import PurePosixPath

from flowloom.datasets.captions.formats import NO_CAPTION, SUFFIXES, Caption, edited_file, parse_file
from flowloom.datasets.captions.store import BATCH_SIZE, CaptionError, Change, Written

THREADS = 8
"""Writing many small files is mostly waiting for the disk or the store."""


class CaptionFiles:
    """Base of `CaptionStore`s whose places are paths of caption files, relative to the images' folder."""

    def __init__(self, suffixes: tuple[str, ...] = SUFFIXES):
        """
        Args:
            suffixes: of files that may be written.
        """
        self.suffixes = suffixes

    def read(self, place: str) -> bytes | None:
        """The content of the file; None if it does not exist."""
        raise NotImplementedError

    def replace(self, change: Change) -> bool:
        """Make `change`, of a file as a whole or not at all; False if the file is not `before`."""
        raise NotImplementedError

    def require_access(self) -> None:
        """Nothing to check: each file reports its own error."""

    def caption(self, place: str, data: bytes | None) -> Caption:
        """The caption in the content of the file."""
        return NO_CAPTION if data is None else parse_file(PurePosixPath(place).name, data)

    def edited(
        self,
        place: str,
        data: bytes | None,
        captions: list[str],
        is_tags: bool | None = None,  # noqa: ARG002
    ) -> bytes | None:
        """The file with other captions; None: no file is needed."""
        return edited_file(place, data, captions)

    def is_same(self, data: bytes | None, other: bytes | None) -> bool:
        """True if both are the same bytes."""
        return data == other

    def rebased(self, change: Change, data: bytes | None) -> Change | None:
        """`change` if the file contains `change.before`."""
        return change if data == change.before else None

    def write(
        self, changes: Iterable[Change], on_written: Callable[[list[Change]], None] = lambda _: None
    ) -> Written:
        """Replace the files that still contain `before`, each as a whole or not at all.

        Raises:
            OSError, SourceError: a file cannot be written.
            CaptionError: a place is not a caption file.
        """
        written = Written()
        remaining = iter(changes)
        while batch := list(islice(remaining, BATCH_SIZE)):
            for change in batch:
                if PurePosixPath(change.place).suffix not in self.suffixes:
                    known = " or ".join(self.suffixes)
                    raise CaptionError(f"{change.place} is not a {known} file: it was not changed.")
            done = list[Change]()
            for change, is_done in zip(batch, self.replace_all(batch), strict=True):
                if is_done:
                    done.append(change)
                else:
                    written.changed_meanwhile.append(change.ref)
            written.num_written += len(done)
            on_written(done)
        return written

    def replace_all(self, batch: list[Change]) -> list[bool]:
        """`replace` of each change."""
        with ThreadPoolExecutor(THREADS, thread_name_prefix="captions") as pool:
            return list(pool.map(self.replace, batch))

    def order(self, place: str) -> int:  # noqa: ARG002
        """0: any order will do."""
        return 0

    def label(self, place: str) -> str:
        """The path of the file."""
        return place

    def close(self) -> None:
        """Nothing is held open."""


def caption_place(item: str, suffix: str, *, is_only: bool) -> str:
    """Where a new caption of `item` goes: `a.txt` for `a.png`; `a.png.txt` if several images are called `a`.

    Args:
        is_only: no other image of the folder has the same stem.
    """
    stem, dot, _ = item.rpartition(".")
    return (stem if dot and is_only else item) + suffix
