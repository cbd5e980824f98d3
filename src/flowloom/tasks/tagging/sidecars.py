"""Captions in files beside the pictures of a folder."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flowloom.datasets.build.items import Item, Unusable
from flowloom.datasets.build.options import BuildOptions
from flowloom.datasets.build.pairs import split_suffix
from flowloom.datasets.build.readers.folder import open_folder
from flowloom.datasets.build.text import decode
from flowloom.errors import DataError, ImageError
from flowloom.tasks.tagging.changes import Applied, Change, Found, Target


class Sidecars:
    """A `CaptionSet`: `a.jpg` and `a.txt`, or `a.jpg.txt` where several pictures are called `a`."""

    writes_at_once = True

    def __init__(self, folder: Path, suffix: str):
        """
        Raises:
            DataError: there is no such folder.
        """
        if not folder.is_dir():
            raise DataError(f"{folder}: there is no such folder.")
        self.folder = folder.resolve()
        self.suffix = suffix
        self.unusable: list[Unusable] = []

    def targets(self) -> list[Target]:
        """The pictures, depth first and by name."""
        options = BuildOptions(caption_suffixes=(self.suffix,))
        found = list(open_folder(self.folder, options).items)
        self.unusable += (one for one in found if isinstance(one, Unusable))
        items = [one for one in found if isinstance(one, Item)]
        stems = Counter(split_suffix(item.filename)[0] for item in items)
        return [Target(item.filename, (self._place(item, stems),)) for item in items]

    def _place(self, item: Item, stems: Counter[str]) -> str:
        if item.sidecar:
            return Path(item.sidecar.key).relative_to(self.folder).as_posix()
        stem = split_suffix(item.filename)[0]
        return (stem if stems[stem] == 1 else item.filename) + self.suffix

    def picture(self, target: Target) -> bytes:
        """The bytes of the file."""
        return self._path(target.name).read_bytes()

    def found(self, target: Target) -> list[Found]:
        """The file's text.

        Raises:
            DataError: it is no text.
        """
        (place,) = target.places
        raw = self._read(place)
        if raw is None:
            return [Found(place, None, ())]
        try:
            text = decode(raw.encode("utf-8", "surrogateescape"), "utf-8")
        except DataError as error:
            raise DataError(f"its caption {place} is {error}") from error
        return [Found(place, raw, (text,) if text.strip() else ())]

    def raw(self, found: Found, captions: tuple[str, ...], is_tags: bool | None) -> Any:  # noqa: ARG002
        """The text of the file; what was there, where nothing is new."""
        return found.raw if captions == found.captions else "\n".join(captions) + "\n"

    def apply(self, changes: Mapping[str, Change], *, is_undone: bool = False) -> Applied:
        """Write the files, each whole or not at all.

        Raises:
            DataError: one cannot be written.
        """
        applied = Applied()
        for change in changes.values():
            source, aim = (change.after, change.before) if is_undone else (change.before, change.after)
            now = self._read(change.place)
            if now == aim:
                continue
            # An empty file may be what a power failure left of ours.
            if now == source or (now == "" and not is_undone):
                self._write(change.place, aim)
                applied.num_written += 1
            else:
                applied.changed_since.append(change.place)
        return applied

    def close(self) -> None:
        """Nothing is held open."""

    def _path(self, name: str) -> Path:
        path = (self.folder / name).resolve()
        if not path.is_relative_to(self.folder):
            raise ImageError(f"{name} leads out of {self.folder}")
        return path

    def _read(self, place: str) -> str | None:
        try:
            return self._path(place).read_bytes().decode("utf-8", "surrogateescape")
        except FileNotFoundError:
            return None

    def _write(self, place: str, text: str | None) -> None:
        path = self._path(place)
        if path.suffix != self.suffix:
            raise DataError(f"{path} is no {self.suffix} file: nothing is written to it.")
        partial = path.with_name(f".{path.name}.tmp")
        try:
            if text is None:
                path.unlink()
                return
            partial.write_bytes(text.encode("utf-8", "surrogateescape"))
            if path.exists():
                shutil.copymode(path, partial)
            partial.replace(path)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise DataError(
                f"{path}: cannot be written ({error.strerror}). Mend that, then resume the run."
            ) from error
