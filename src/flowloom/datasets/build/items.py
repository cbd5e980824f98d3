"""Output of the readers: images with their captions, unusable files, and remarks."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, Protocol, TypeAlias

from flowloom.datasets.build.wildcards import balanced, variants
from flowloom.errors import ImageError
from flowloom.image_suffixes import IMAGE_SUFFIXES
from flowloom.printable import printable

JUNK = frozenset(
    (
        "__macosx",
        "@eadir",
        "$recycle.bin",
        "lost+found",
        "system volume information",
        "thumbs.db",
        "desktop.ini",
    )
)
"""Names of system folders and files, in lower case."""


class Content(Protocol):
    """Bytes that can be read, with a stamp that changes with them."""

    @property
    def key(self) -> str:
        """Their location: a path, or an archive and its member."""
        ...

    @property
    def stamp(self) -> str:
        """Size and modification time, or an ETag."""
        ...

    def head(self, length: int) -> bytes:
        """The first `length` bytes; fewer only if there are no more."""
        ...

    def read(self) -> bytes:
        """All bytes."""
        ...


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file on this machine."""

    key: str
    stamp: str

    def head(self, length: int) -> bytes:
        """At most the first `length` bytes."""
        with open(self.key, "rb") as file:  # noqa: PTH123 -- a Path per file is slow for millions of files
            return file.read(length)

    def read(self) -> bytes:
        """All bytes."""
        return Path(self.key).read_bytes()


@dataclass(frozen=True, slots=True)
class ArchiveMember:
    """`length` bytes from `offset` in the uncompressed `archive`."""

    archive: str
    name: str
    stamp: str
    offset: int
    length: int

    @property
    def key(self) -> str:
        """The archive and the member in it."""
        return f"{self.archive}!{self.name}"

    def head(self, length: int) -> bytes:
        """At most the first `length` bytes.

        Raises:
            ImageError: the archive ends before them.
        """
        num_bytes = min(length, self.length)
        with Path(self.archive).open("rb") as file:
            file.seek(self.offset)
            data = file.read(num_bytes)
        if len(data) < num_bytes:
            raise ImageError("the archive ends in the middle of it")
        return data

    def read(self) -> bytes:
        """All bytes."""
        return self.head(self.length)


@dataclass(frozen=True, slots=True)
class InMemory:
    """Bytes in memory."""

    key: str
    stamp: str
    data: bytes

    def head(self, length: int) -> bytes:
        """At most the first `length` bytes."""
        return self.data[:length]

    def read(self) -> bytes:
        """All bytes."""
        return self.data


@dataclass(frozen=True, slots=True)
class CaptionRule:
    """How captions are made from the text of a caption file."""

    fallback: str | None = None
    """The caption if there is no file; None: the image cannot be used."""
    lines: Literal["joined", "first", "each"] = "joined"
    """All lines are one caption; or only the first line is (Kohya's rule); or each line is."""
    prefix: str = ""
    suffix: str = ""
    has_wildcards: bool = False
    """`{a|b}` in a caption means alternatives."""
    separator: str = ","
    """Between tags."""
    keep_separator: str = ""
    """Separates fixed tags from shuffled ones; "": none."""
    secondary_separator: str = ""
    """Between tags that are kept together; "": none."""

    def apply(self, texts: Sequence[str]) -> tuple[str, ...]:
        """One or more captions from `texts`, each on one line: T5 treats line breaks as spaces."""
        captions: list[str] = []
        for text in texts:
            lines = [" ".join(line.split()) for line in text.strip().splitlines()]
            captions += (
                lines
                if self.lines == "each"
                else lines[:1]
                if self.lines == "first"
                else [" ".join(line for line in lines if line)]
            )
        nonempty = [caption for caption in captions if caption] or [""]
        framed = [" ".join(part for part in (self.prefix, text, self.suffix) if part) for text in nonempty]
        if self.has_wildcards:
            framed = balanced([variants(caption) for caption in framed])
        separated = [self._separated(caption) for caption in framed]
        return tuple(separated) if len(set(separated)) > 1 else (separated[0],)

    def _separated(self, caption: str) -> str:
        """`caption` with commas as separators, in its written order."""
        if self.keep_separator and self.keep_separator in caption:
            parts = caption.split(self.keep_separator, 2)
            tags = [tag.strip() for part in parts for tag in part.split(self.separator)]
            caption = ", ".join(tag for tag in tags if tag)
        elif self.separator != ",":
            caption = ", ".join(tag.strip() for tag in caption.split(self.separator))
        return caption.replace(self.secondary_separator, ",") if self.secondary_separator else caption

    def is_ordered(self, texts: Sequence[str]) -> bool:
        """True if some tags of `texts` must not be shuffled."""
        marks = [mark for mark in (self.keep_separator, self.secondary_separator) if mark]
        return any(mark in text for mark in marks for text in texts)


PLAIN = CaptionRule()
NAMES_NO_IMAGE = "not read: it names no image here. Build from this file, with the images' folder as --root"
"""Remark on a table among images without captions."""
ORDERED = "not shuffled: sd-scripts keeps some of its tags fixed or together (keep_tokens, separators)"


@dataclass(frozen=True, slots=True)
class Item:
    """An image that may become a row."""

    where: str
    """Its location for reports: `cats/1.jpg`, `data.csv:12`, `a.tar!0001.jpg`."""
    filename: str
    """The file name in its row: relative to the root, with `/`; or a URL."""
    image: Content | None
    """None for a URL whose size may be recorded."""
    captions: tuple[str, ...] | None = None
    sidecar: Content | None = None
    """The file with the caption, read when `captions` is None."""
    rule: CaptionRule = PLAIN
    is_tag_based: bool | None = None
    """None: detected from the caption."""
    is_url_based: bool = False
    is_inside: bool = False
    """The image is inside an archive or a table, and must be extracted for training."""
    loss_weight: float | None = None
    size: tuple[int, int] | None = None
    """(width, height) as recorded; used if the image cannot be read."""
    repeats: int = 1
    references: tuple[str, ...] = ()
    """Files of the images that it was edited from, named like `filename`."""


@dataclass(frozen=True, slots=True)
class Unusable:
    """Something that does not become a row, with the reason."""

    where: str
    reason: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "where", printable(self.where))
        object.__setattr__(self, "reason", printable(self.reason))


@dataclass(frozen=True, slots=True)
class Remark:
    """A note for the user; equal texts are counted together."""

    where: str
    text: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "where", printable(self.where))
        object.__setattr__(self, "text", printable(self.text))


ReaderOutput: TypeAlias = "Item | Unusable | Remark"


@dataclass(frozen=True)
class OpenedSource:
    """An opened source."""

    kind: str
    """The format, which selects the reader."""
    root: Path | None
    """The folder that file names are relative to; None if they are URLs or images are extracted."""
    items: Iterator[ReaderOutput]
    why: str = ""
    """The reason for the detected format; "" if the user chose it."""


def stamp_of(status: os.stat_result) -> str:
    """Size and modification time of a file, which change with it."""
    return f"{status.st_size}:{status.st_mtime_ns}"


def file_stamp(status: os.stat_result) -> str:
    """`stamp_of` with inode and change time. It detects edits within one tick of the clock, and tools that
    preserve modification times. For files that are cheap to read again."""
    return f"{stamp_of(status)}:{status.st_ctime_ns}:{status.st_ino}"


def local_file(path: Path) -> LocalFile:
    """The file at `path` as content.

    Raises:
        OSError: it does not exist.
    """
    return LocalFile(str(path), stamp_of(path.stat()))


def shown(name: str) -> str:
    """`name` as printable text; other bytes are escaped."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(letter if letter.isprintable() else f"\\x{ord(letter):02x}" for letter in text)


def name_problem(name: str) -> str | None:
    """The reason why `name` cannot be a path below the root in a row; None if it can."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return "its name is not UTF-8: rename it"
    parts = PurePosixPath(name).parts
    if not parts or name.endswith("/") or "\0" in name:
        return "its name is not a file name"
    if parts[0] == "/" or ".." in parts:
        return "its name leads out of the folder"
    return None


def reason_of(error: OSError) -> str:
    """The system's message, without the file name, which `where` contains."""
    return os.strerror(error.errno).lower() if error.errno else str(error)


def image_name(name: object) -> str | None:
    """`name` if it is the path of an image below a folder; None for URLs and other values."""
    if not isinstance(name, str) or "://" in name or PurePosixPath(name).suffix.lower() not in IMAGE_SUFFIXES:
        return None
    return None if name_problem(name) else name


def is_archive(path: Path) -> bool:
    """True if `path` is named like a tar."""
    return path.name.lower().endswith((".tar", ".tar.gz", ".tgz"))


def archive_error(path: Path, error: tarfile.TarError | OSError | EOFError) -> Unusable:
    """The entry for an archive that cannot be read, or not to its end."""
    return Unusable(shown(str(path)), f"cannot be read further: {error}. The entries before are used")
