"""Webdataset tars: files of one name up to its first dot are one sample."""

from __future__ import annotations

import glob
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import orjson

from flowloom.data.prepare.items import (
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
from flowloom.data.prepare.options import BuildOptions
from flowloom.data.prepare.pairs import split_suffix
from flowloom.errors import DataError
from flowloom.text_files import as_utf8

LARGEST_MEMBER = 2**30
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
    key, members = "", {}
    with tarfile.open(shard, "r:" if is_plain else "r|*") as tar:
        for member in tar:
            tar.members = []  # pyright: ignore[reportAttributeAccessIssue] -- or it keeps every header
            if not member.isfile() or PurePosixPath(member.name).name.startswith("."):
                continue
            if member.size > LARGEST_MEMBER:
                yield Unusable(f"{shown(shard.name)}!{shown(member.name)}", "larger than 1 GiB")
                continue
            at, ending = split_key(member.name)
            if at != key:
                yield from _sample(shard, key, members, options)
                key, members = at, {}
            members[ending] = _content(tar, shard, stamp, member, is_plain)
    yield from _sample(shard, key, members, options)


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
    if len(pictures) > 1:
        yield Unusable(place, f"it has {len(pictures)} pictures: {shown(', '.join(pictures))}")
        return
    place += f".{shown(pictures[0])}"
    sidecar = next(
        (
            members[ending]
            for suffix in options.caption_suffixes
            for ending in endings
            if endings[ending] == suffix
        ),
        None,
    )
    filename = f"{shard.name.partition('.')[0]}/{key}.{pictures[0]}"
    picture = members[pictures[0]]
    described = members.get("json")
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
