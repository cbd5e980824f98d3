"""Headers of safetensors and GGUF files: names, shapes and formats of tensors, without reading one.

A safetensors header is 8 bytes with its length, then JSON. The file is not trusted: every length is checked
before it is used, and a fault becomes one sentence.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from flowloom.errors import WeightsError
from flowloom.files import parsed
from flowloom.json_types import is_object
from flowloom.models.weight_formats import (
    beside,
    is_description,
    packed,
    quantized_weights,
    title_of,
)

MAX_HEADER = 2**25
"""Bytes of JSON; those of released models have less than 2 MiB."""
WIDTHS = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}
"""Bytes per number; formats not listed have one byte or less."""
SAFE = (".safetensors", ".sft")
GGUF = ".gguf"
PICKLED = (".pth", ".pt", ".ckpt", ".bin")
INDEX = ".index.json"
"""Suffixes of weights, and of an index of shards."""

_MAX_DESCRIPTION = 2**16
_LFS = b"version https://git-lfs"
_NARROW = {"F8_E4M3", "F8_E5M2", "I8", "U8", "BOOL"}


class Place(NamedTuple):
    """A tensor in a file."""

    dtype: str
    """As the format spells it: BF16, F8_E4M3 ..."""
    shape: tuple[int, ...]
    begin: int
    end: int
    """Bytes of the file."""

    @property
    def numel(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Header:
    """The tensors' descriptions and the metadata."""

    tensors: dict[str, Place]
    metadata: dict[str, str]
    descriptions: dict[str, bytes] = field(default_factory=dict[str, bytes])
    """Contents of the small tensors that describe quantized weights."""


def read_header(path: Path) -> Header:
    """The header of the file at `path`.

    Raises:
        WeightsError: it is not a complete safetensors or GGUF file; the message says why.
    """
    try:
        if is_gguf(path):
            from flowloom.models.gguf_files import read_gguf  # it makes a Header

            return read_gguf(path)
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(max(8, len(_LFS)))
            length = int.from_bytes(head[:8], "little")
            _check_length(path, head, size, length)
            file.seek(8)
            text = file.read(length)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error.strerror}.") from error
    try:
        content = parsed(text)
    except ValueError:
        raise WeightsError(f"{path}: its header is not JSON. {AGAIN}") from None
    if not is_object(content):
        raise WeightsError(f"{path}: its header names no tensors. {AGAIN}")
    given = content.pop("__metadata__", None)
    metadata = given if is_object(given) else {}
    tensors = {name: _place(path, name, entry, 8 + length) for name, entry in content.items()}
    end = max((place.end for place in tensors.values()), default=0)
    if end > size:
        raise WeightsError(f"{path}: truncated: it has {size:,} of {end:,} bytes. {AGAIN}")
    descriptions = {name: _content(path, place) for name, place in tensors.items() if is_description(name)}
    return Header(tensors, {str(name): str(text) for name, text in metadata.items()}, descriptions)


def is_gguf(path: Path) -> bool:
    """True if the file at `path` begins as a GGUF file does, under any name.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return file.read(4) == b"GGUF"


def _content(path: Path, place: Place) -> bytes:
    with path.open("rb") as file:
        file.seek(place.begin)
        return file.read(min(place.end - place.begin, _MAX_DESCRIPTION))


AGAIN = "Download it again."


def _check_length(path: Path, head: bytes, size: int, length: int) -> None:
    if head.startswith(_LFS):
        raise WeightsError(f"{path}: a Git LFS pointer, not the weights. Fetch them: git lfs pull")
    if size < 8 or length > size - 8:
        raise WeightsError(f"{path}: truncated, or not a safetensors file ({size:,} bytes). {AGAIN}")
    if length > MAX_HEADER:
        raise WeightsError(f"{path}: its header claims {length:,} bytes, more than any model's. {AGAIN}")


def _place(path: Path, name: str, entry: Any, data_begins: int) -> Place:
    try:
        begin, end = entry["data_offsets"]
        place = Place(str(entry["dtype"]), tuple(entry["shape"]), begin + data_begins, end + data_begins)
        if 0 <= begin <= end and _fits(place):
            return place
    except (KeyError, TypeError, ValueError):
        pass
    raise WeightsError(f"{path}: its header has an impossible entry for {name[:100]!r}. {AGAIN}")


def _fits(place: Place) -> bool:
    """True if sizes are whole numbers and agree with the tensor's bytes."""
    sizes = (*place.shape, place.begin, place.end)
    if len(place.shape) > 16 or not all(type(size) is int and 0 <= size < 2**63 for size in sizes):
        return False
    width = WIDTHS.get(place.dtype, 1 if place.dtype in _NARROW else None)
    return width is None or place.numel * width == place.end - place.begin


def read_shards(index: Path) -> tuple[Header, list[Path]]:
    """The tensors of all files that `index` (*.index.json) names, as one header; and these files.

    Raises:
        WeightsError: the index or a file is damaged, or a file is missing.
    """
    try:
        names = _shard_names(json.loads(_text(index)))
    except (ValueError, RecursionError, TypeError, AttributeError, KeyError):
        raise WeightsError(f"{index}: not an index of shards. {AGAIN}") from None
    files = [index.parent / name for name in names]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise WeightsError(f"{index}: {len(missing)} of {len(files)} shards are missing, {missing[0]} first.")
    headers = [read_header(file) for file in files]
    return joined(headers), files


def joined(headers: Sequence[Header]) -> Header:
    """The tensors of several files as one header, with the metadata of the first."""
    tensors = {name: place for header in headers for name, place in header.tensors.items()}
    descriptions = {name: text for header in headers for name, text in header.descriptions.items()}
    return Header(tensors, headers[0].metadata if headers else {}, descriptions)


def as_weights(header: Header) -> tuple[Header, str | None]:
    """The header without the tensors beside quantized weights, and the name of their format if there are any.

    Shapes of 4-bit weights are those of the unpacked ones.
    """
    dtypes = {name: place.dtype for name, place in header.tensors.items()}
    quantized = quantized_weights(dtypes, lambda name: header.descriptions.get(name, b""), header.metadata)
    left_out = beside(dtypes, quantized)
    tensors = {name: place for name, place in header.tensors.items() if name not in left_out}
    for weight, parts in quantized.items():
        if "state" in parts:
            layout = packed(header.descriptions.get(parts["state"], b""))
            if layout:
                tensors[weight] = tensors[weight]._replace(dtype=layout.kind.upper(), shape=layout.shape)
    return Header(tensors, header.metadata), title_of(dtypes, quantized)


def _shard_names(content: Any) -> list[str]:
    names: Iterable[str] = sorted(set(content["weight_map"].values()))
    # A name with a folder in it is not a file of this index.
    if any(Path(name).name != name or not name.endswith(SAFE) for name in names):
        raise ValueError(names)
    return list(names)


def _text(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MAX_HEADER)


def read_small_json(path: Path, limit: int = 2**20) -> dict[str, Any]:
    """The object in a small JSON file beside weights, such as config.json; empty for anything else."""
    try:
        if path.stat().st_size > limit:
            return {}
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if is_object(content) else {}
