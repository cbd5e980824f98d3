"""Webdataset tars: files of one name up to its first dot are one sample."""

from __future__ import annotations

import glob
import re
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import orjson

from flowloom.datasets.build.items import (
    PICTURES,
    ArchiveMember,
    Content,
    Found,
    Held,
    Item,
    Reading,
    Remark,
    Unusable,
    archive_error,
    good_name,
    is_archive,
    shown,
    stamp_of,
    wrong_name,
)
from flowloom.datasets.build.options import BuildOptions
from flowloom.datasets.build.pairs import MASK, is_mask, split_suffix
from flowloom.datasets.build.tars import open_tar
from flowloom.errors import DataError
from flowloom.text_files import as_utf8

LARGEST_MEMBER = 2**30
MOST_HELD = 2**29
"""Bytes of pictures from a compressed tar that wait in memory for their captions."""
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_FILENAME = "filename"
"""In a sample's .json: the name that the picture had before it was packed."""


def open_webdataset(source: str, options: BuildOptions) -> Reading:
    """The samples of a tar, of the tars in a folder, or of those that `a-{000..012}.tar` or `*.tar` names.

    Raises:
        DataError: there is none.
    """
    shards = shards_of(source)
    if not shards:
        raise DataError(f"{source}: there is no tar of that name.")
    return Reading("webdataset", None, _read(shards, options))


def shards_of(source: str) -> list[Path]:
    """The archives that `source` names, in order."""
    path = Path(source)
    if path.is_dir():
        return sorted(child for child in path.iterdir() if is_archive(child))
    if path.is_file():
        return [path]
    numbered = _RANGE.search(source)
    if not numbered:
        return sorted(Path(name) for name in glob.glob(source))  # noqa: PTH207 -- an absolute pattern, too
    first, last = numbered[1], numbered[2]
    names = (f"{n:0{len(first)}}" for n in range(int(first), int(last) + 1))
    return [Path(source[: numbered.start()] + name + source[numbered.end() :]) for name in names]


def _read(shards: list[Path], options: BuildOptions) -> Iterator[Found]:
    for shard in shards:
        try:
            yield from _read_shard(shard, options)
        except (tarfile.TarError, OSError, EOFError) as error:
            yield archive_error(shard, error)


def _read_shard(shard: Path, options: BuildOptions) -> Iterator[Found]:
    is_plain = shard.suffix.lower() == ".tar"
    stamp = stamp_of(shard.stat())
    samples = _Samples(shard, options)
    with open_tar(shard, "r:" if is_plain else "r|*") as tar:
        for member in tar:
            tar.members = []  # pyright: ignore[reportAttributeAccessIssue] -- or it keeps every header
            name = member.name.removeprefix("./")
            if not member.isfile() or any(part.startswith(".") for part in PurePosixPath(name).parts):
                yield from _passed_over(shard, member)
                continue
            if member.size > LARGEST_MEMBER:
                yield Unusable(f"{shown(shard.name)}!{shown(name)}", "larger than 1 GiB")
                continue
            yield from samples.add(name, _content(tar, shard, stamp, member, is_plain))
    yield from samples.rest()


def _passed_over(shard: Path, member: tarfile.TarInfo) -> Iterator[Remark]:
    """A remark where a member that is not read has the name of an image; `._a.png` of macOS is none."""
    path = PurePosixPath(member.name)
    if split_suffix(path.name)[1] not in PICTURES or path.name.startswith("._"):
        return
    is_link = member.issym() or member.islnk()
    why = "a link" if is_link else "its name is hidden or leads out" if member.isfile() else "not a file"
    yield Remark(f"{shown(shard.name)}!{shown(member.name)}", f"not read: {why}")


class _Samples:
    """Members of a tar as samples: those that follow each other, and those whose parts lie apart."""

    def __init__(self, shard: Path, options: BuildOptions):
        self.shard = shard
        self.options = options
        self._key = ""
        self._members: dict[str, Content] = {}
        self._waiting: dict[str, dict[str, Content]] = {}
        """Of samples that have no picture or no caption yet, in their order."""
        self._held = 0
        """Bytes in memory of those that wait."""

    def add(self, name: str, content: Content) -> Iterator[Found]:
        """Take the next member; the samples that are whole now."""
        at, ending = split_key(name)
        if at != self._key or ending in self._members:
            yield from self._close()
            self._key = at
        self._members[ending] = content

    def rest(self) -> Iterator[Found]:
        """What is left at the end of the tar."""
        yield from self._close()
        yield from self._give_up(0)

    def _close(self) -> Iterator[Found]:
        """The sample that the next member does not belong to; it waits where a part of it may come yet."""
        key, members = self._key, self._members
        self._members = {}
        if not members:
            return
        before = self._waiting.get(key, {})
        if before and not before.keys() & members.keys():
            members = before | members
            self._held -= _size_of(self._waiting.pop(key).values())
        if key not in self._waiting and not _is_whole(members, self.options):
            self._waiting[key] = members
            self._held += _size_of(members.values())
            yield from self._give_up(MOST_HELD)
            return
        yield from _samples_of(self.shard, key, members, self.options)

    def _give_up(self, most: int) -> Iterator[Found]:
        """Samples that wait no longer: of `most` bytes the oldest ones that exceed them; of 0, all."""
        while self._waiting and (not most or self._held > most):
            key = next(iter(self._waiting))
            members = self._waiting.pop(key)
            self._held -= _size_of(members.values())
            yield from _samples_of(self.shard, key, members, self.options)


def _size_of(contents: Iterable[Content]) -> int:
    return sum(len(content.data) for content in contents if isinstance(content, Held))


def _pictures(members: dict[str, Content]) -> list[str]:
    return [ending for ending in members if split_suffix(f"x.{ending}")[1] in PICTURES]


def _is_whole(members: dict[str, Content], options: BuildOptions) -> bool:
    is_text = any(split_suffix(f"x.{ending}")[1] in options.caption_suffixes for ending in members)
    return is_text and bool(_pictures(members))


def _samples_of(shard: Path, key: str, members: dict[str, Content], options: BuildOptions) -> Iterator[Found]:
    """One sample; or several, where names have dots in them: `boat_v1.0.jpg`, `boat_v1.1.jpg`."""
    stems = dict.fromkeys(split_suffix(f"x.{ending}")[0][1:] for ending in _pictures(members))
    texts = {split_suffix(f"x.{ending}")[0][1:] for ending in members if ending not in _pictures(members)}
    if len(stems) < 2 or not texts & stems.keys():
        yield from _sample(shard, key, members, options)
        return
    for stem in stems:
        own = {
            split_suffix(f"x.{ending}")[1][1:]: content
            for ending, content in members.items()
            if split_suffix(f"x.{ending}")[0][1:] == stem
        }
        yield from _sample(shard, key + stem, own, options)


def split_key(name: str) -> tuple[str, str]:
    """Key and ending of a member: the last part of its path is cut at its first dot."""
    folder, slash, last = name.rpartition("/")
    stem, _, ending = last.partition(".")
    return f"{folder}{slash}{stem}", ending


def _content(
    tar: tarfile.TarFile, shard: Path, stamp: str, member: tarfile.TarInfo, is_plain: bool
) -> Content:
    if is_plain and not member.sparse:
        return ArchiveMember(str(shard), member.name, stamp, member.offset_data, member.size)
    file = tar.extractfile(member)
    data = file.read() if file else b""
    return Held(f"{shard}!{member.name}", stamp, data)


def _sample(shard: Path, key: str, members: dict[str, Content], options: BuildOptions) -> Iterator[Found]:
    endings = {ending: f".{ending}".lower() for ending in members}
    pictures = [ending for ending, dotted in endings.items() if split_suffix(f"x{dotted}")[1] in PICTURES]
    place = f"{shown(shard.name)}!{shown(key)}"
    if not pictures:
        if members:
            yield Remark(place, "a sample without a picture")
        return
    if all(is_mask(split_suffix(f"{key}.{ending}")[0]) for ending in pictures):
        yield Remark(place, MASK)
        return
    if len(pictures) > 1:
        yield Unusable(place, f"it has {len(pictures)} pictures: {shown(', '.join(pictures))}")
        return
    place += f".{shown(pictures[0])}"
    sidecar = _sidecar(members, options)
    filename = f"{shard.name.partition('.')[0]}/{key}.{pictures[0]}"
    picture = members[pictures[0]]
    described = next((members[ending] for ending in members if endings[ending] == ".json"), None)
    try:
        fields = _fields(described) if described else {}
    except DataError as error:
        yield Unusable(place, str(error))
        return
    filename = good_name(fields.get(_FILENAME)) or filename
    reason = wrong_name(filename)
    if reason:
        yield Unusable(place, reason)
        return
    several = _texts(fields.get("caption_or_tags"))
    is_tags, weight = fields.get("is_tag_based"), fields.get("loss_weight")
    yield Item(
        place,
        filename,
        picture,
        captions=several,
        sidecar=sidecar,
        rule=options.caption_rule,
        is_tag_based=is_tags if isinstance(is_tags, bool) else None,
        is_inside=True,
        loss_weight=weight if isinstance(weight, float | int) and 0 <= weight <= 1 else None,
    )


def _sidecar(members: dict[str, Content], options: BuildOptions) -> Content | None:
    """The caption file of a sample: by its whole ending, or by the last part of it (`output.txt`)."""
    endings = {ending: f".{ending}".lower() for ending in members}
    for suffix in options.caption_suffixes:
        exact = [ending for ending in endings if endings[ending] == suffix]
        last = [ending for ending in endings if endings[ending].endswith(suffix)]
        if exact or len(last) == 1:
            return members[(exact or last)[0]]
    return None


def _texts(value: Any) -> tuple[str, ...] | None:
    """Several captions; a single one stands in the .txt as well, where people edit it."""
    is_good = isinstance(value, list) and value and all(isinstance(text, str) for text in value)
    return tuple(value) if is_good else None


def _fields(described: Content) -> dict[str, Any]:
    try:
        fields = orjson.loads(as_utf8(described.read()))
    except orjson.JSONDecodeError as error:
        raise DataError(f"its .json is not JSON: {error}") from error
    return fields if isinstance(fields, dict) else {}
