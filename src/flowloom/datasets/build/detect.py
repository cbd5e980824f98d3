"""Which form a source has, why, and when that has to be asked.

Rules for a folder, in this order:

1. A dataset that Hugging Face's `save_to_disk` wrote, or a table (metadata.jsonl, metadata.csv, parquet),
   counts only when it can be read as one; a `state.json` of another program or a damaged parquet does not.
2. Where images have caption files of their own, these win over tars and over a table that describes some of
   the same images; where both describe images that the other does not, the user is asked.
3. Folders `10_name` are Kohya's repeats where every folder with images is named so, no image is beside
   them, and the numbers are plausible: 1 to MAX_REPEATS, without leading zeros. The user is asked where the
   numbers only count 1, 2, 3, or where images lie elsewhere, too. `--from kohya` always reads repeats.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from flowloom.datasets.build.items import (
    NAMES_NO_IMAGE,
    Found,
    Item,
    Reading,
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
"""Hugging Face's `imagefolder`: a folder of pictures with their captions in one of these."""
_LISTS = (".csv", ".tsv", ".jsonl", ".ndjson")
"""Suffixes of tables that are looked for in the folders below, too; a .json there is mostly one image's."""
LOOKED_AT = 5000
"""Images of a folder that are looked at to see its form."""
MOST_TABLES = 20
"""Files that are looked at for one."""
ROWS = 1000
"""Rows of a table that are looked at."""


class Unclear(DataError):
    """A source has several forms; the user has to choose."""

    def __init__(self, source: str, reason: str, choices: tuple[Kind, ...]):
        self.choices = choices
        flags = " or ".join(f"--from {choice}" for choice in choices)
        super().__init__(
            f"{source}: {reason}. State how to read it: {flags}; in the studio, under 'Read the folder as'."
        )


@dataclass(frozen=True)
class Detected:
    """The form of a source."""

    kind: Kind
    source: str
    """The file or folder that has it."""
    why: str
    passed_over: tuple[Remark, ...] = ()
    """What lies there and is not read."""
    choices: tuple[Kind, ...] = ()
    """The forms that it may have as well; nothing where it is clear."""

    def checked(self) -> Detected:
        """Itself.

        Raises:
            Unclear: it may have several forms.
        """
        if self.choices:
            raise Unclear(self.source, self.why, self.choices)
        return self


def detect(source: str, options: BuildOptions) -> Detected:
    """The form of `source`.

    Raises:
        DataError: there is nothing, or nothing that we can read.
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
        raise DataError(f"{path}: a zip. Unpack it and name the folder, or import it in the studio.")
    kinds: dict[str, Kind] = dict.fromkeys(TABLES, "table")
    kinds |= {".toml": "kohya-toml", ".parquet": "parquet", ".arrow": "huggingface"}
    existing(path)
    if suffix not in kinds:
        known = ", ".join(sorted([*kinds, ".tar"]))
        raise DataError(f"{path}: {suffix or 'no suffix'} is none of {known}. Name its form by --from.")
    return Detected(kinds[suffix], source, f"a {suffix} file")


def existing(path: Path) -> Path:
    """`path`.

    Raises:
        DataError: there is nothing.
    """
    if not path.exists():
        raise DataError(f"{path}: there is nothing of that name.")
    return path


def table_in(folder: Path) -> Path:
    """The table that a folder holds for its images.

    Raises:
        DataError: there is none.
    """
    found = [folder / name for name in IMAGEFOLDER if (folder / name).is_file()]
    if not found:
        raise DataError(f"{folder}: there is no {', '.join(IMAGEFOLDER)} in it. Name the table itself.")
    return found[0]


@dataclass
class _Survey:
    """Images of a folder, the first LOOKED_AT of them, by their path below it."""

    images: set[str] = field(default_factory=set)
    captioned: set[str] = field(default_factory=set)

    @property
    def told(self) -> str:
        """How many images there are, and how many have captions."""
        more = " or more" if len(self.images) >= LOOKED_AT else ""
        return f"{len(self.captioned):,} of {len(self.images):,}{more} images have caption files"


@dataclass(frozen=True)
class _Table:
    """A table of a folder that can be read as a dataset."""

    kind: Kind
    path: Path
    named: frozenset[str]
    """Images of the folder that it describes, of its first ROWS rows."""
    num_inside: int
    """Images that it holds itself."""
    num_addresses: int = 0
    """Images elsewhere that it names."""

    @property
    def is_whole(self) -> bool:
        """Whether all rows were looked at."""
        return self.num_described < ROWS

    @property
    def num_described(self) -> int:
        """How many images it describes, wherever they are."""
        return len(self.named) + self.num_inside + self.num_addresses


class _Folder:
    """A folder whose form is looked for."""

    def __init__(self, folder: Path, options: BuildOptions):
        self.folder = folder
        self.options = options
        self._passed_over: list[Remark] = []

    def detected(self) -> Detected:
        """Its form."""
        survey = survey_of(self.folder, PairRule(self.options.caption_suffixes))
        if is_saved(self.folder) and not survey.captioned:
            return Detected("huggingface", str(self.folder), "saved by Hugging Face's save_to_disk")
        for kind, path in self._tables():
            table = self._opened(kind, path, survey)
            if table is None:
                self._pass_over(path, "it describes no image that can be read")
            elif found := self._chosen(table, survey):
                return found
        if survey.images and not survey.captioned and (other := self._other_table()):
            return other
        return self._of_tars(survey) or self._of_files(survey)

    def _of_tars(self, survey: _Survey) -> Detected | None:
        """The tars of the folder, where they are meant."""
        tars = sorted(path for path in self.folder.iterdir() if is_archive(path))
        if tars and not survey.images:
            return Detected("webdataset", str(self.folder), f"{len(tars):,} tars")
        if tars and not survey.captioned:
            return self._unclear(f"{len(tars):,} tars have images beside them", "webdataset", "folder")
        for tar in tars:
            self._pass_over(tar, "images with caption files are beside it")
        return None

    def _of_files(self, survey: _Survey) -> Detected:
        verdict = kohya_verdict(self.folder)
        if verdict.is_unclear:
            return self._unclear(verdict.why, "kohya", "folder")
        kind: Kind = "kohya" if verdict.is_kohya else "folder"
        return Detected(kind, str(self.folder), verdict.why or survey.told, tuple(self._passed_over))

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
        """The one table of any name, here or a folder below, that describes images."""
        files = [path for path in sorted(self.folder.iterdir()) if split_suffix(path.name)[1] in TABLES]
        lower = sorted(self.folder.glob("*/*"))
        files += (path for path in lower if path.name in IMAGEFOLDER or split_suffix(path.name)[1] in _LISTS)
        files = [path for path in files[:MOST_TABLES] if path.is_file()]
        found = [path for path in files if self._describes(path)]
        if len(found) > 1:
            listed = ", ".join(self._below(path) for path in found)
            why = "no image has a caption file, and several tables describe images"
            raise DataError(f"{self.folder}: {why}: {listed}. Build from one of them.")
        if not found:
            of_images = (path for path in files if split_suffix(path.name)[1] in _LISTS)
            self._passed_over += (Remark(self._below(path), NAMES_NO_IMAGE) for path in of_images)
            return None
        name = self._below(found[0])
        kind: Kind = "parquet" if name.endswith(".parquet") else "table"
        return Detected(kind, str(found[0]), f"{name} describes images, and none has a caption file")

    def _below(self, path: Path) -> str:
        return shown(path.relative_to(self.folder).as_posix())

    def _describes(self, path: Path) -> bool:
        opener = open_huggingface if path.suffix.lower() == ".parquet" else open_table
        try:
            return any(isinstance(one, Item) for one in islice(opener(path, self.options).items, ROWS))
        except DataError:
            return False

    def _opened(self, kind: Kind, path: Path, survey: _Survey) -> _Table | None:
        """The table at `path`; None where none of its rows names an image."""
        if not survey.images:
            return _Table(kind, path, frozenset(), 1)  # there is nothing else that could be meant
        opener = open_table if kind == "table" else open_huggingface
        try:
            rows = [one for one in islice(opener(path, self.options).items, ROWS) if isinstance(one, Item)]
        except DataError:
            return None
        root = (self.options.root or self.folder).resolve()
        below = os.path.relpath(self.folder.resolve(), root)
        named = [row.filename for row in rows if not row.is_inside and not row.is_url_based]
        inside = sum(row.is_inside for row in rows)
        elsewhere = sum(row.is_url_based for row in rows)
        images = {os.path.normpath(f"{below}/{name}") for name in survey.images}
        known = frozenset(os.path.relpath(name, below) for name in named if name in images)
        found = _Table(kind, path, known, inside, elsewhere)
        return found if found.num_described else None

    def _chosen(self, table: _Table, survey: _Survey) -> Detected | None:
        """The table, where it is meant; None where the caption files are."""
        name = self._name(table.path)
        more = "" if table.is_whole else " or more"
        described = f"{name} describes {table.num_described:,}{more}"
        if not survey.captioned:
            left = sorted(survey.images - table.named) if table.is_whole and table.named else []
            remarks = [Remark(shown(image), f"not read: {name} does not describe it") for image in left]
            why = f"{described} images, and no image has a caption file"
            why = why if survey.images else f"there is {name}, and no image file"
            return Detected(table.kind, str(table.path), why, (*self._passed_over, *remarks))
        if not table.named and not table.num_inside:
            self._pass_over(table.path, "it names images elsewhere, and those here have caption files")
            return None
        if table.is_whole and not table.num_inside and table.named < survey.captioned:
            self._pass_over(table.path, "caption files describe the same images and more")
            return None
        return self._unclear(f"{survey.told}, and {described}", "folder", table.kind)

    def _name(self, path: Path) -> str:
        return shown(path.name) if path != self.folder else "*.parquet"

    def _pass_over(self, path: Path, reason: str) -> None:
        self._passed_over.append(Remark(self._name(path), f"not read: {reason}"))

    def _unclear(self, why: str, *choices: Kind) -> Detected:
        return Detected("folder", str(self.folder), why, choices=choices)


def survey_of(folder: Path, rule: PairRule) -> _Survey:
    """The images below `folder` and which of them have caption files."""
    survey = _Survey()
    for prefix, names in walk(folder):
        for found in pair({name: name for name in names}, "", rule):
            if isinstance(found, tuple):
                survey.images.add(prefix + found[0])
                if found[2]:
                    survey.captioned.add(prefix + found[0])
        if len(survey.images) >= LOOKED_AT:
            break
    return survey


def with_remarks(reading: Reading, detected: Detected) -> Reading:
    """`reading` with what was detected, and what was passed over before what is read."""
    return Reading(reading.kind, reading.root, _chained(detected.passed_over, reading), detected.why)


def _chained(remarks: Iterable[Remark], reading: Reading) -> Iterator[Found]:
    yield from remarks
    yield from reading.items
