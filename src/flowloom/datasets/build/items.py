"""What readers hand to `build`: pictures with their captions, what cannot be used, what is worth a remark."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, Protocol, TypeAlias

from flowloom.datasets.build.wildcards import evenly, variants
from flowloom.errors import ImageError
from flowloom.printable import printable

PICTURES = frozenset(
    f".{name}"
    for name in [
        "jpg",
        "jpeg",
        "jpe",
        "jfif",
        "png",
        "webp",
        "jxl",
        "avif",
        "heic",
        "heif",
        "bmp",
        "gif",
        "tif",
        "tiff",
        "svg",
    ]
)
"""Suffixes, in lower case, of files that are pictures."""
JXL = ".jxl"
"""FLOW: a JPEG XL of the same name is read in place of the file that a row names."""
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
"""Folders and files, in lower case, that systems leave behind."""


class Content(Protocol):
    """Bytes that can be read, and what tells whether they changed since."""

    @property
    def key(self) -> str:
        """Where they are: a path, or an archive and the member in it."""
        ...

    @property
    def stamp(self) -> str:
        """Differs when the bytes differ: size and time of the last change, or an ETag."""
        ...

    def head(self, length: int) -> bytes:
        """At most the first `length` bytes; fewer only when there are no more."""
        ...

    def read(self) -> bytes:
        """All of them."""
        ...


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file on this machine."""

    key: str
    stamp: str

    def head(self, length: int) -> bytes:
        """At most the first `length` bytes."""
        with open(self.key, "rb") as file:  # noqa: PTH123 -- a Path for each of a million files is time
            return file.read(length)

    def read(self) -> bytes:
        """All bytes."""
        return Path(self.key).read_bytes()


@dataclass(frozen=True, slots=True)
class ArchiveMember:
    """`length` bytes from `offset` on in the uncompressed archive `archive`."""

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
        wanted = min(length, self.length)
        with Path(self.archive).open("rb") as file:
            file.seek(self.offset)
            data = file.read(wanted)
        if len(data) < wanted:
            raise ImageError("the archive ends in the middle of it")
        return data

    def read(self) -> bytes:
        """All bytes."""
        return self.head(self.length)


@dataclass(frozen=True, slots=True)
class Held:
    """Bytes that are in memory already."""

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
    """How a caption follows from its file."""

    fallback: str | None = None
    """The caption where there is no file; None: the picture cannot be used."""
    lines: Literal["joined", "first", "each"] = "joined"
    """All lines are one caption; or the first alone, Kohya's rule; or each is a caption of its own."""
    prefix: str = ""
    suffix: str = ""
    has_wildcards: bool = False
    """`{a|b}` in a caption stands for several."""
    separator: str = ","
    """Between tags."""
    keep_separator: str = ""
    """Around the tags that are shuffled, where others keep their places; "": none."""
    secondary_separator: str = ""
    """Between tags that stay together; "": none."""

    def apply(self, texts: Sequence[str]) -> tuple[str, ...]:
        """The captions that `texts` mean, one or more, each of one line: T5 takes line breaks for spaces."""
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
        good = [caption for caption in captions if caption] or [""]
        framed = [" ".join(part for part in (self.prefix, one, self.suffix) if part) for one in good]
        if self.has_wildcards:
            framed = evenly([variants(caption) for caption in framed])
        found = [self._separated(caption) for caption in framed]
        return tuple(found) if len(set(found)) > 1 else (found[0],)

    def _separated(self, caption: str) -> str:
        """`caption` with plain separators, in the order in which it is written."""
        if self.keep_separator and self.keep_separator in caption:
            parts = caption.split(self.keep_separator, 2)
            tags = [tag.strip() for part in parts for tag in part.split(self.separator)]
            caption = ", ".join(tag for tag in tags if tag)
        elif self.separator != ",":
            caption = ", ".join(tag.strip() for tag in caption.split(self.separator))
        return caption.replace(self.secondary_separator, ",") if self.secondary_separator else caption

    def is_ordered(self, texts: Sequence[str]) -> bool:
        """Whether some tags of `texts` keep their places, so that they must not be shuffled as others are."""
        marks = [mark for mark in (self.keep_separator, self.secondary_separator) if mark]
        return any(mark in text for mark in marks for text in texts)


PLAIN = CaptionRule()
NAMES_NO_IMAGE = "not read: it names no image here. Build from this file, with their folder as --root"
"""Of a table among images without captions."""
ORDERED = "not shuffled: sd-scripts keeps some of its tags in place or together (keep_tokens, separators)"


@dataclass(frozen=True, slots=True)
class Item:
    """A picture that may become a row."""

    place: str
    """Where it stands, for reports: `cats/1.jpg`, `data.csv:12`, `a.tar!0001.jpg`."""
    filename: str
    """As the row will name it: below the root with `/`, or a URL."""
    picture: Content | None
    """None where only what is recorded is known of it."""
    captions: tuple[str, ...] | None = None
    sidecar: Content | None = None
    """The file with the caption, read when `captions` is None."""
    rule: CaptionRule = PLAIN
    is_tag_based: bool | None = None
    """None: seen from the caption."""
    is_url_based: bool = False
    is_inside: bool = False
    """The picture is inside an archive or a table and must be written out to be trained on."""
    loss_weight: float | None = None
    size: tuple[int, int] | None = None
    """(width, height) as recorded; used where the picture cannot be asked."""
    repeats: int = 1


@dataclass(frozen=True, slots=True)
class Unusable:
    """Something that does not become a row, and why."""

    place: str
    reason: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "place", printable(self.place))
        object.__setattr__(self, "reason", printable(self.reason))


@dataclass(frozen=True, slots=True)
class Remark:
    """Something that the user may want to know; equal texts are counted together."""

    place: str
    text: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "place", printable(self.place))
        object.__setattr__(self, "text", printable(self.text))


Found: TypeAlias = "Item | Unusable | Remark"


@dataclass(frozen=True)
class Reading:
    """A source that has been opened."""

    kind: str
    """Which reader it is."""
    root: Path | None
    """The folder that file names are relative to; None when they are URLs or have to be written out."""
    items: Iterator[Found]
    why: str = ""
    """What shows that it is of this kind; "" where the user said so."""


def stamp_of(status: os.stat_result) -> str:
    """What changes when a file does."""
    return f"{status.st_size}:{status.st_mtime_ns}"


def file_stamp(status: os.stat_result) -> str:
    """`stamp_of` with inode and change time: no edit within one tick of the clock, and no tool that keeps
    the time of a file that it replaces, goes unnoticed. For files that are cheap to read again."""
    return f"{stamp_of(status)}:{status.st_ctime_ns}:{status.st_ino}"


def local_file(path: Path) -> LocalFile:
    """The file at `path` as content.

    Raises:
        OSError: it is not there.
    """
    return LocalFile(str(path), stamp_of(path.stat()))


def shown(name: str) -> str:
    """`name` as it can be printed and written, whatever bytes it has."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(letter if letter.isprintable() else f"\\x{ord(letter):02x}" for letter in text)


def wrong_name(name: str) -> str | None:
    """Why `name` cannot stand in a row as a path below the root; None when it can."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return "its name is not UTF-8: rename it"
    parts = PurePosixPath(name).parts
    if not parts or name.endswith("/") or "\0" in name:
        return "its name is not that of a file"
    if parts[0] == "/" or ".." in parts:
        return "its name leads out of the folder"
    return None


def reason_of(error: OSError) -> str:
    """What the system said, without the name that the place says already."""
    return os.strerror(error.errno).lower() if error.errno else str(error)


def good_name(name: object) -> str | None:
    """`name` where it is a picture's path below a folder; an address is none."""
    if not isinstance(name, str) or "://" in name or PurePosixPath(name).suffix.lower() not in PICTURES:
        return None
    return None if wrong_name(name) else name


def is_archive(path: Path) -> bool:
    """Whether `path` is named like a tar."""
    return path.name.lower().endswith((".tar", ".tar.gz", ".tgz"))


def archive_error(path: Path, error: tarfile.TarError | OSError | EOFError) -> Unusable:
    """What to say of an archive that cannot be read, or not to its end."""
    return Unusable(shown(str(path)), f"cannot be read further: {error}. What stands before is used")
