"""GGUF files: names, shapes and block formats of their tensors, and the numbers in the blocks. No torch.

The header is read here, within a fixed number of bytes, because the file is not trusted; the formats of
blocks are those of the package gguf (llama.cpp). Networks keep their names; T5 gets transformers' ones.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from flowloom.errors import WeightsError
from flowloom.models.header import AGAIN, MAX_HEADER, Header, Place

MAGIC = b"GGUF"
PLAIN = {"F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8"}
"""Formats without blocks, spelled as safetensors spells them."""
CHUNK = 2**14
"""Blocks that are dequantized at once: 4 MiB of float32 at most."""

_VERSIONS = (2, 3)
_WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_INTEGERS = {4: "<u4", 5: "<i4", 10: "<u8", 11: "<i8"}
_UINT32, _STRING, _ARRAY = 4, 8, 9
"""Kinds of metadata by GGUF's numbers: bytes of each scalar, and those with a length."""
_MAX_DIMS = 8
_SHAPE_KEY = "comfy.gguf.orig_shape."
"""Metadata of ComfyUI-GGUF: the shape of a tensor that was cut into rows of whole blocks."""
_ARCHITECTURE, _ALIGNMENT = "general.architecture", "general.alignment"
_T5 = ("t5", "t5encoder")


class _Damaged(ValueError):
    """A part of a header that cannot be; the message says which."""


class _Reader:
    """Numbers and strings from the start of a file, up to MAX_HEADER bytes."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self.offset = 0

    def take(self, count: int) -> bytes:
        if count > MAX_HEADER - self.offset:
            raise _Damaged("its header claims more bytes than any model's")
        found = self._file.read(count)
        if len(found) != count:
            raise _Damaged("truncated within its header")
        self.offset += count
        return found

    def number(self, code: str = "Q") -> int:
        return struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))[0]

    def text(self) -> str:
        return self.take(self.number()).decode("utf-8", "replace")

    def value(self) -> Any:
        """A metadata value: a string, an integer, a list of integers; None for others, which are skipped."""
        kind = self.number("I")
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            return self._numbers(kind, 1)[0]
        kind, count = self.number("I"), self.number()
        if kind == _STRING:
            for _ in range(count):
                self.take(self.number())
            return None
        return self._numbers(kind, count)

    def _numbers(self, kind: int, count: int) -> list[Any]:
        if kind not in _WIDTHS:
            raise _Damaged(f"its metadata has values of kind {kind}")
        raw = self.take(_WIDTHS[kind] * count)
        return np.frombuffer(raw, _INTEGERS[kind]).tolist() if kind in _INTEGERS else [None]


def read_gguf(path: Path) -> Header:
    """The header of the GGUF file at `path`; `Place.dtype` is GGUF's name of the block format, such as Q4_K.

    Raises:
        WeightsError: the file is damaged, or has blocks that are not known here.
        OSError: it cannot be read.
    """
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            reader = _Reader(file)
            metadata, entries = _contents(reader)
        tensors = _places(metadata, entries, reader.offset)
    except (_Damaged, struct.error) as error:
        raise WeightsError(f"{path}: not a complete GGUF file: {error}. {AGAIN}") from None
    end = max((place.end for place in tensors.values()), default=0)
    if end > size:
        raise WeightsError(f"{path}: truncated: it has {size:,} of {end:,} bytes. {AGAIN}")
    texts = {key: text for key, text in metadata.items() if isinstance(text, str) and len(text) < 1024}
    return Header(tensors, texts)


_Entry = tuple[str, tuple[int, ...], int, int]
"""Name, shape, number of the format, offset in the data."""


def _contents(reader: _Reader) -> tuple[dict[str, Any], list[_Entry]]:
    if reader.take(4) != MAGIC:
        raise _Damaged("it does not begin with GGUF")
    version = reader.number("I")
    if version not in _VERSIONS:
        raise _Damaged(f"its version is {version}, not 2 or 3")
    num_tensors, num_values = reader.number(), reader.number()
    metadata: dict[str, Any] = {}
    for _ in range(num_values):
        key = reader.text()
        metadata[key] = reader.value()
    return metadata, [_entry(reader) for _ in range(num_tensors)]


def _entry(reader: _Reader) -> _Entry:
    name, num_dims = reader.text(), reader.number("I")
    if num_dims > _MAX_DIMS:
        raise _Damaged(f"{name[:100]!r} has {num_dims} dimensions")
    # The fastest dimension is first.
    shape = tuple(reader.number() for _ in range(num_dims))[::-1]
    return name, shape, reader.number("I"), reader.number()


def _places(metadata: dict[str, Any], entries: list[_Entry], header_end: int) -> dict[str, Place]:
    alignment = metadata.get(_ALIGNMENT, 32)
    if not isinstance(alignment, int) or not 0 < alignment <= 2**20:
        raise _Damaged("its alignment is no power of two")
    start = -(-header_end // alignment) * alignment
    renamed = _t5_names(entries) if metadata.get(_ARCHITECTURE) in _T5 else {}
    tensors: dict[str, Place] = {}
    for name, shape, number, offset in entries:
        dtype, block, width = _format(number)
        if (shape[-1] if shape else 1) % block:
            raise _Damaged(f"rows of {name[:100]!r} are no whole blocks of {dtype}")
        begin = start + offset
        end = begin + math.prod(shape) // block * width
        given = tuple(metadata.get(f"{_SHAPE_KEY}{name}") or shape)
        if math.prod(given) != math.prod(shape):
            raise _Damaged(f"{name[:100]!r} has two sizes")
        name = renamed.get(name, name)
        if name in tensors or end >= 2**63:
            raise _Damaged(f"{name[:100]!r} is there twice, or too large")
        tensors[name] = Place(dtype, given, begin, end)
    return tensors


def _format(number: int) -> tuple[str, int, int]:
    """Name of a block format, numbers per block, bytes per block."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        kind = GGMLQuantizationType(number)
        return (kind.name, *GGML_QUANT_SIZES[kind])
    except (ValueError, KeyError):
        raise _Damaged(f"it has tensors of kind {number}, which is not known here") from None


def _t5_names(entries: list[_Entry]) -> dict[str, str]:
    """transformers' names of a T5 encoder's tensors by llama.cpp's."""
    from gguf import MODEL_ARCH, get_tensor_name_map

    blocks = {
        name.split(".")[2] for name, *_ in entries if name.startswith("enc.blk.") and name.count(".") > 2
    }
    table = get_tensor_name_map(MODEL_ARCH.T5ENCODER, len(blocks)).mapping
    theirs = {
        short: long
        for long, (_, short) in table.items()
        if long.startswith(("shared", "encoder.")) and not long.endswith(".wi")
    }
    return {
        name: f"{theirs[layer]}.{leaf}"
        for name, *_ in entries
        for layer, _, leaf in (name.rpartition("."),)
        if layer in theirs
    }


def check_formats(path: Path, tensors: dict[str, Place]) -> None:
    """Check that the numbers in every block format among `tensors` can be computed.

    Raises:
        WeightsError: some cannot.
    """
    from gguf import GGMLQuantizationType, quants
    from gguf.constants import GGML_QUANT_SIZES

    for dtype in {place.dtype for place in tensors.values()} - PLAIN:
        kind = GGMLQuantizationType[dtype]
        try:
            quants.dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
        except NotImplementedError:
            raise WeightsError(
                f"{path} has {dtype} blocks, which are not read here. Use Q8_0 or Q4_K."
            ) from None


def read_blocks(path: Path, place: Place) -> NDArray[np.float32]:
    """The numbers of a tensor in blocks, float32, in its shape."""
    from gguf import GGMLQuantizationType, quants
    from gguf.constants import GGML_QUANT_SIZES

    kind = GGMLQuantizationType[place.dtype]
    block, width = GGML_QUANT_SIZES[kind]
    blocks = read_raw(path, place, np.uint8).reshape(-1, width)
    numbers = np.empty((len(blocks), block), np.float32)
    with np.errstate(all="ignore"):  # a damaged scale may be infinite
        for start in range(0, len(blocks), CHUNK):
            part = np.ascontiguousarray(blocks[start : start + CHUNK]).reshape(1, -1)
            numbers[start : start + CHUNK] = quants.dequantize(part, kind).reshape(-1, block)
    return numbers.reshape(place.shape)


def read_raw(path: Path, place: Place, dtype: Any) -> NDArray[Any]:
    """The bytes of a tensor as a flat array of `dtype`, mapped from the file; writes change a copy."""
    count = (place.end - place.begin) // np.dtype(dtype).itemsize
    if not count:
        return np.empty(0, dtype)
    return np.memmap(path, dtype, "c", place.begin, (count,))
