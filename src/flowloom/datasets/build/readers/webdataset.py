"""Webdataset tars: files whose names are equal up to the first dot are one sample."""

from __future__ import annotations

import glob
import re
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import orjson

from flowloom.datasets.build.items import (
    ArchiveMember,
    Content,
    InMemory,
    Item,
    OpenedSource,
    ReaderOutput,
    Remark,
    Unusable,
    archive_error,
    image_name,
    is_archive,
    name_problem,
    shown,
    stamp_of,
)
from flowloom.datasets.build.options import BuildOptions
from flowloom.datasets.build.pairs import MASK, is_mask, split_suffix
from flowloom.datasets.build.tars import open_tar
from flowloom.errors import DataError
from flowloom.image_suffixes import IMAGE_SUFFIXES
from flowloom.json_types import is_array, is_object
from flowloom.text_files import as_utf8

MAX_MEMBER_BYTES = 2**30
MAX_PENDING_BYTES = 2**29
"""Bytes of images from a compressed tar that are kept in memory until their captions are read."""
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_FILENAME = "filename"
"""Key in a sample's .json: the name of the image before it was packed."""


def open_webdataset(source: str, options: BuildOptions) -> OpenedSource:
    """The samples of a tar, of the tars in a folder, or of a pattern such as `a-{000..012}.tar` or `*.tar`.

    Raises:
        DataError: there is no tar.
    """
    shards = shards_of(source)
    if not shards:
        raise DataError(f"{source}: no such tar.")
    return OpenedSource("webdataset", None, _read(shards, options))


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


def _read(shards: list[Path], options: BuildOptions) -> Iterator[ReaderOutput]:
    for shard in shards:
        try:
            yield from _read_shard(shard, options)
        except (tarfile.TarError, OSError, EOFError) as error:
            yield archive_error(shard, error)


def _read_shard(shard: Path, options: BuildOptions) -> Iterator[ReaderOutput]:
    is_plain = shard.suffix.lower() == ".tar"
    stamp = stamp_of(shard.stat())
    samples = _Samples(shard, options)
    with open_tar(shard, "r:" if is_plain else "r|*") as tar:
        for member in tar:
            tar.members = []  # pyright: ignore[reportAttributeAccessIssue] -- or it keeps every header
            name = member.name.removeprefix("./")
            if not member.isfile() or any(part.startswith(".") for part in PurePosixPath(name).parts):
                yield from _skipped_image(shard, member)
                continue
            if member.size > MAX_MEMBER_BYTES:
                yield Unusable(f"{shown(shard.name)}!{shown(name)}", "larger than 1 GiB")
                continue
            yield from samples.add(name, _content(tar, shard, stamp, member, is_plain))
    yield from samples.rest()


def _skipped_image(shard: Path, member: tarfile.TarInfo) -> Iterator[Remark]:
    """A remark if a member that is not read is named like an image; `._a.png` of macOS is not one."""
    path = PurePosixPath(member.name)
    if split_suffix(path.name)[1] not in IMAGE_SUFFIXES or path.name.startswith("._"):
        return
    is_link = member.issym() or member.islnk()
    reason = "a link" if is_link else "its name is hidden or leads out" if member.isfile() else "not a file"
    yield Remark(f"{shown(shard.name)}!{shown(member.name)}", f"not read: {reason}")


class _Samples:
    """Groups the members of a tar into samples, even if the members of a sample are not adjacent."""

    def __init__(self, shard: Path, options: BuildOptions):
        self.shard = shard
        self.options = options
        self._key = ""
        self._members: dict[str, Content] = {}
        self._pending: dict[str, dict[str, Content]] = {}
        """Members of samples that have no image or no caption yet, in order."""
        self._pending_bytes = 0
        """Bytes of pending members in memory."""

    def add(self, name: str, content: Content) -> Iterator[ReaderOutput]:
        """Add the next member; yields samples that are complete."""
        key, ending = split_key(name)
        if key != self._key or ending in self._members:
            yield from self._close()
            self._key = key
        self._members[ending] = content

    def rest(self) -> Iterator[ReaderOutput]:
        """The remaining samples, at the end of the tar."""
        yield from self._close()
        yield from self._flush(0)

    def _close(self) -> Iterator[ReaderOutput]:
        """End the current sample; it stays pending if more members may follow."""
        key, members = self._key, self._members
        self._members = {}
        if not members:
            return
        earlier = self._pending.get(key, {})
        if earlier and not earlier.keys() & members.keys():
            members = earlier | members
            self._pending_bytes -= _size_of(self._pending.pop(key).values())
        if key not in self._pending and not _is_complete(members, self.options):
            self._pending[key] = members
            self._pending_bytes += _size_of(members.values())
            yield from self._flush(MAX_PENDING_BYTES)
            return
        yield from _samples_of(self.shard, key, members, self.options)

    def _flush(self, max_bytes: int) -> Iterator[ReaderOutput]:
        """The oldest pending samples, until the rest has at most `max_bytes`; 0: all."""
        while self._pending and (not max_bytes or self._pending_bytes > max_bytes):
            key = next(iter(self._pending))
            members = self._pending.pop(key)
            self._pending_bytes -= _size_of(members.values())
            yield from _samples_of(self.shard, key, members, self.options)


def _size_of(contents: Iterable[Content]) -> int:
    return sum(len(content.data) for content in contents if isinstance(content, InMemory))


def _images(members: dict[str, Content]) -> list[str]:
    return [ending for ending in members if split_suffix(f"x.{ending}")[1] in IMAGE_SUFFIXES]


def _is_complete(members: dict[str, Content], options: BuildOptions) -> bool:
    is_text = any(split_suffix(f"x.{ending}")[1] in options.caption_suffixes for ending in members)
    return is_text and bool(_images(members))


def _samples_of(
    shard: Path, key: str, members: dict[str, Content], options: BuildOptions
) -> Iterator[ReaderOutput]:
    """One sample, or several if names contain dots: `boat_v1.0.jpg`, `boat_v1.1.jpg`."""
    stems = dict.fromkeys(split_suffix(f"x.{ending}")[0][1:] for ending in _images(members))
    texts = {split_suffix(f"x.{ending}")[0][1:] for ending in members if ending not in _images(members)}
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
    """Key and ending of a member: its path, split at the first dot of the file name."""
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
    return InMemory(f"{shard}!{member.name}", stamp, data)


def _sample(
    shard: Path, key: str, members: dict[str, Content], options: BuildOptions
) -> Iterator[ReaderOutput]:
    endings = {ending: f".{ending}".lower() for ending in members}
    images = [ending for ending, dotted in endings.items() if split_suffix(f"x{dotted}")[1] in IMAGE_SUFFIXES]
    where = f"{shown(shard.name)}!{shown(key)}"
    if not images:
        if members:
            yield Remark(where, "a sample without an image")
        return
    if all(is_mask(split_suffix(f"{key}.{ending}")[0]) for ending in images):
        yield Remark(where, MASK)
        return
    if len(images) > 1:
        yield Unusable(where, f"it has {len(images)} images: {shown(', '.join(images))}")
        return
    where += f".{shown(images[0])}"
    sidecar = _sidecar(members, options)
    filename = f"{shard.name.partition('.')[0]}/{key}.{images[0]}"
    image = members[images[0]]
    metadata = next((members[ending] for ending in members if endings[ending] == ".json"), None)
    try:
        fields = _fields(metadata) if metadata else {}
    except DataError as error:
        yield Unusable(where, str(error))
        return
    filename = image_name(fields.get(_FILENAME)) or filename
    reason = name_problem(filename)
    if reason:
        yield Unusable(where, reason)
        return
    captions = _texts(fields.get("caption_or_tags"))
    is_tags, weight = fields.get("is_tag_based"), fields.get("loss_weight")
    yield Item(
        where,
        filename,
        image,
        captions=captions,
        sidecar=sidecar,
        rule=options.caption_rule,
        is_tag_based=is_tags if isinstance(is_tags, bool) else None,
        is_inside=True,
        loss_weight=weight if isinstance(weight, float | int) and 0 <= weight <= 1 else None,
    )


def _sidecar(members: dict[str, Content], options: BuildOptions) -> Content | None:
    """The caption file of a sample: by its whole ending, or by the last part (`output.txt`)."""
    endings = {ending: f".{ending}".lower() for ending in members}
    for suffix in options.caption_suffixes:
        exact = [ending for ending in endings if endings[ending] == suffix]
        last = [ending for ending in endings if endings[ending].endswith(suffix)]
        if exact or len(last) == 1:
            return members[(exact or last)[0]]
    return None


def _texts(value: Any) -> tuple[str, ...] | None:
    """Several captions; a single caption is read from the .txt, which people edit."""
    is_good = is_array(value) and value and all(isinstance(text, str) for text in value)
    return tuple(value) if is_good else None


def _fields(metadata: Content) -> dict[str, Any]:
    try:
        fields = orjson.loads(as_utf8(metadata.read()))
    except orjson.JSONDecodeError as error:
        raise DataError(f"its .json is not JSON: {error}") from error
    return fields if is_object(fields) else {}
