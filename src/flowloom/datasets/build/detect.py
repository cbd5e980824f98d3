"""Detect the format of a source, with the reason; ambiguous sources raise AmbiguousSource.

Rules for a folder, in this order:

1. A dataset of Hugging Face's `save_to_disk` or a table (metadata.jsonl, metadata.csv, parquet) counts only
   if it can be read; a `state.json` of another program or a damaged parquet does not.
2. Caption files take precedence over tars, and over a table that describes some of the same images. If both
   describe images that the other does not, the source is ambiguous.
3. Folders `10_name` are Kohya's repeats if every folder with images has such a name, no image is beside
   them, and the numbers are plausible: 1 to MAX_REPEATS, without leading zeros. The source is ambiguous if
   the numbers only count 1, 2, 3, or images are elsewhere, too. `--from kohya` always reads repeats.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from flowloom.datasets.build.items import (
    NAMES_NO_IMAGE,
    Item,
    OpenedSource,
    ReaderOutput,
    Remark,
    is_archive,
    shown,
)
from flowloom.datasets.build.options import BuildOptions, Kind
from flowloom.datasets.build.pairs import PairRule, pair, split_suffix
from flowloom.datasets.build.readers.huggingface import is_saved, open_huggingface
from flowloom.datasets.build.readers.table import REMOTE, TABLES, open_table
from flowloom.datasets.build.repeats import kohya_verdict, walk
from flowloom.errors import DataError

IMAGEFOLDER = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
"""Hugging Face's `imagefolder`: a folder of images, with captions in one of these files."""
_LISTS = (".csv", ".tsv", ".jsonl", ".ndjson")
"""Suffixes of tables that are searched for in subfolders, too; a .json there usually describes one image."""
MAX_SURVEYED = 5000
"""Images of a folder that are read to detect its format."""
MAX_TABLES = 20
"""Files that are checked for being a table of images."""
ROWS = 1000
"""Rows of a table that are read."""


class AmbiguousSource(DataError):
    """A source may have several formats; the user has to choose."""

    def __init__(self, source: str, reason: str, choices: tuple[Kind, ...]):
        self.choices = choices
        flags = " or ".join(f"--from {choice}" for choice in choices)
        super().__init__(
            f"{source}: {reason}. Choose how to read it: {flags}; in the studio, under 'Read the folder as'."
        )


@dataclass(frozen=True)
class Detected:
    """The format of a source."""

    kind: Kind
    source: str
    """The file or folder to read."""
    why: str
    skipped: tuple[Remark, ...] = ()
    """Files that are not read."""
    choices: tuple[Kind, ...] = ()
    """Possible formats of an ambiguous source; otherwise empty."""

    def checked(self) -> Detected:
        """This format.

        Raises:
            AmbiguousSource: it may have several formats.
        """
        if self.choices:
            raise AmbiguousSource(self.source, self.why, self.choices)
        return self


def detect(source: str, options: BuildOptions) -> Detected:
    """The format of `source`.

    Raises:
        DataError: it does not exist or cannot be read.
    """
    if source.startswith(REMOTE):
        return Detected("listing", source, "an address")
    path = Path(source)
    if path.is_dir():
        return _Folder(path, options).detected()
    if is_archive(path) or "{" in source or "*" in source:
        return Detected("webdataset", source, "named like a tar")
    suffix = split_suffix(path.name)[1]
    if suffix == ".zip" and path.exists():
        raise DataError(f"{path}: a zip. Unpack it and pass the folder, or import it in the studio.")
    kinds: dict[str, Kind] = dict.fromkeys(TABLES, "table")
    kinds |= {".toml": "kohya-toml", ".parquet": "parquet", ".arrow": "huggingface"}
    existing(path)
    if suffix not in kinds:
        suffixes = ", ".join(sorted([*kinds, ".tar"]))
        raise DataError(f"{path}: the suffix must be one of {suffixes}. Or choose the format with --from.")
    return Detected(kinds[suffix], source, f"a {suffix} file")


def existing(path: Path) -> Path:
    """`path`.

    Raises:
        DataError: it does not exist.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file or folder.")
    return path


def table_in(folder: Path) -> Path:
    """The table of the images in a folder.

    Raises:
        DataError: there is none.
    """
    tables = [folder / name for name in IMAGEFOLDER if (folder / name).is_file()]
    if not tables:
        raise DataError(f"{folder}: it has no {' or '.join(IMAGEFOLDER)}. Pass the table itself.")
    return tables[0]


@dataclass
class _Survey:
    """The first MAX_SURVEYED images of a folder, by their path below it."""

    images: set[str] = field(default_factory=set)
    captioned: set[str] = field(default_factory=set)

    @property
    def summary(self) -> str:
        """The number of images, and of those with captions."""
        more = " or more" if len(self.images) >= MAX_SURVEYED else ""
        return f"{len(self.captioned):,} of {len(self.images):,}{more} images have caption files"


@dataclass(frozen=True)
class _Table:
    """A table of a folder that can be read as a dataset."""

    kind: Kind
    path: Path
    named: frozenset[str]
    """Images of the folder that its first ROWS rows describe."""
    num_inside: int
    """Images that are inside the table."""
    num_urls: int = 0
    """Images that it names by URL."""

    @property
    def is_complete(self) -> bool:
        """True if all rows were read."""
        return self.num_described < ROWS

    @property
    def num_described(self) -> int:
        """The number of images that it describes, anywhere."""
        return len(self.named) + self.num_inside + self.num_urls


class _Folder:
    """A folder whose format is being detected."""

    def __init__(self, folder: Path, options: BuildOptions):
        self.folder = folder
        self.options = options
        self._skipped: list[Remark] = []

    def detected(self) -> Detected:
        """Its format."""
        survey = survey_of(
            self.folder, PairRule(self.options.caption_suffixes, with_videos=self.options.with_videos)
        )
        if is_saved(self.folder) and not survey.captioned:
            return Detected("huggingface", str(self.folder), "saved by Hugging Face's save_to_disk")
        for kind, path in self._tables():
            table = self._opened(kind, path, survey)
            if table is None:
                self._skip(path, "it describes no readable image")
            elif detected := self._chosen(table, survey):
                return detected
        if survey.images and not survey.captioned and (other := self._other_table()):
            return other
        return self._of_tars(survey) or self._of_files(survey)

    def _of_tars(self, survey: _Survey) -> Detected | None:
        """The tars of the folder; None if they are not the dataset."""
        tars = sorted(path for path in self.folder.iterdir() if is_archive(path))
        if tars and not survey.images:
            return Detected("webdataset", str(self.folder), f"{len(tars):,} tars")
        if tars and not survey.captioned:
            return self._unclear(f"{len(tars):,} tars have images beside them", "webdataset", "folder")
        for tar in tars:
            self._skip(tar, "images with caption files are beside it")
        return None

    def _of_files(self, survey: _Survey) -> Detected:
        verdict = kohya_verdict(self.folder)
        if verdict.is_ambiguous:
            return self._unclear(verdict.why, "kohya", "folder")
        kind: Kind = "kohya" if verdict.is_kohya else "folder"
        return Detected(kind, str(self.folder), verdict.why or survey.summary, tuple(self._skipped))

    def _tables(self) -> Iterator[tuple[Kind, Path]]:
        for name in IMAGEFOLDER:
            if (self.folder / name).is_file():
                yield ("parquet" if name.endswith(".parquet") else "table"), self.folder / name
        parquet = [path for path in self.folder.iterdir() if split_suffix(path.name)[1] == ".parquet"]
        if (self.folder / "data").is_dir():
            parquet += (self.folder / "data").glob("*.parquet")
        if {path.name for path in parquet} - {*IMAGEFOLDER}:
            yield "parquet", self.folder

    def _other_table(self) -> Detected | None:
        """The only table, here or in a subfolder, that describes images."""
        files = [path for path in sorted(self.folder.iterdir()) if split_suffix(path.name)[1] in TABLES]
        nested = sorted(self.folder.glob("*/*"))
        files += (path for path in nested if path.name in IMAGEFOLDER or split_suffix(path.name)[1] in _LISTS)
        files = [path for path in files[:MAX_TABLES] if path.is_file()]
        tables = [path for path in files if self._describes(path)]
        if len(tables) > 1:
            listed = ", ".join(self._below(path) for path in tables)
            why = "no image has a caption file, and several tables describe images"
            raise DataError(f"{self.folder}: {why}: {listed}. Build from one of them.")
        if not tables:
            of_images = (path for path in files if split_suffix(path.name)[1] in _LISTS)
            self._skipped += (Remark(self._below(path), NAMES_NO_IMAGE) for path in of_images)
            return None
        name = self._below(tables[0])
        kind: Kind = "parquet" if name.endswith(".parquet") else "table"
        return Detected(kind, str(tables[0]), f"{name} describes images, and none has a caption file")

    def _below(self, path: Path) -> str:
        return shown(path.relative_to(self.folder).as_posix())

    def _describes(self, path: Path) -> bool:
        opener = open_huggingface if path.suffix.lower() == ".parquet" else open_table
        try:
            return any(isinstance(item, Item) for item in islice(opener(path, self.options).items, ROWS))
        except DataError:
            return False

    def _opened(self, kind: Kind, path: Path, survey: _Survey) -> _Table | None:
        """The table at `path`; None if none of its rows names an image."""
        if not survey.images:
            return _Table(kind, path, frozenset(), 1)  # nothing else can be the dataset
        opener = open_table if kind == "table" else open_huggingface
        try:
            items = islice(opener(path, self.options).items, ROWS)
            rows = [item for item in items if isinstance(item, Item)]
        except DataError:
            return None
        root = (self.options.root or self.folder).resolve()
        below = os.path.relpath(self.folder.resolve(), root)
        named = [row.filename for row in rows if not row.is_inside and not row.is_url_based]
        inside = sum(row.is_inside for row in rows)
        num_urls = sum(row.is_url_based for row in rows)
        images = {os.path.normpath(f"{below}/{name}") for name in survey.images}
        described = frozenset(os.path.relpath(name, below) for name in named if name in images)
        table = _Table(kind, path, described, inside, num_urls)
        return table if table.num_described else None

    def _chosen(self, table: _Table, survey: _Survey) -> Detected | None:
        """The table, if it describes the dataset; None if the caption files do."""
        name = self._name(table.path)
        more = "" if table.is_complete else " or more"
        described = f"{name} describes {table.num_described:,}{more}"
        if not survey.captioned:
            left = sorted(survey.images - table.named) if table.is_complete and table.named else []
            remarks = [Remark(shown(image), f"not read: {name} does not describe it") for image in left]
            why = f"{described} images, and no image has a caption file"
            why = why if survey.images else f"{name} exists, and no image file"
            return Detected(table.kind, str(table.path), why, (*self._skipped, *remarks))
        if not table.named and not table.num_inside:
            self._skip(table.path, "it names images elsewhere, and the images here have caption files")
            return None
        if table.is_complete and not table.num_inside and table.named < survey.captioned:
            self._skip(table.path, "caption files describe the same images and more")
            return None
        return self._unclear(f"{survey.summary}, and {described}", "folder", table.kind)

    def _name(self, path: Path) -> str:
        return shown(path.name) if path != self.folder else "*.parquet"

    def _skip(self, path: Path, reason: str) -> None:
        self._skipped.append(Remark(self._name(path), f"not read: {reason}"))

    def _unclear(self, why: str, *choices: Kind) -> Detected:
        return Detected("folder", str(self.folder), why, choices=choices)


def survey_of(folder: Path, rule: PairRule) -> _Survey:
    """The images below `folder` and which of them have caption files."""
    survey = _Survey()
    for prefix, names in walk(folder):
        for paired in pair({name: name for name in names}, "", rule):
            if isinstance(paired, tuple):
                survey.images.add(prefix + paired[0])
                if paired[2]:
                    survey.captioned.add(prefix + paired[0])
        if len(survey.images) >= MAX_SURVEYED:
            break
    return survey


def with_remarks(opened: OpenedSource, detected: Detected) -> OpenedSource:
    """`opened` with the reason for its format, preceded by remarks on skipped files."""
    return OpenedSource(opened.kind, opened.root, _chained(detected.skipped, opened), detected.why)


def _chained(remarks: Iterable[Remark], opened: OpenedSource) -> Iterator[ReaderOutput]:
    yield from remarks
    yield from opened.items
