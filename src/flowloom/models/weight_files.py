"""The tensors of weights files, still on disk: safetensors by mmap, pickles as weights only, GGUF."""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from flowloom.errors import WeightsError
from flowloom.json_types import is_object
from flowloom.models.gguf_files import PLAIN, check_formats, read_blocks, read_gguf, read_raw
from flowloom.models.header import GGUF, INDEX, PICKLED, SAFE, Place, is_gguf

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class Entry(NamedTuple):
    """A tensor that is still on disk."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]
    is_dequantized: bool = False
    """True if the file holds it in fewer bits than `dtype`."""


def files_of(path: Path) -> list[Path]:
    if path.name.endswith(INDEX) and path.is_file():
        return _shards(path)
    if not path.is_dir():
        return [path]
    # The shortest name is the plain one, not a variant such as model.fp16.safetensors.index.json.
    indexes = sorted(path.glob(f"*{INDEX}"), key=lambda index: (".bin." in index.name, len(index.name)))
    if indexes:
        return _shards(indexes[0])
    for suffixes in (SAFE, (GGUF,), PICKLED):
        files = sorted(file for file in path.iterdir() if file.suffix in suffixes and file.is_file())
        if files:
            return files
    what = "no file is named, and this folder" if path == Path() else f"{path}: this folder"
    raise WeightsError(f"{what} holds no weights ({', '.join((*SAFE, GGUF, *PICKLED))}).")


def shard_names(index: Path) -> list[str]:
    """The files beside `index` that it names, in order, existing or not.

    Raises:
        WeightsError: it is no index of shards.
    """
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{index}: not an index of shards ({error!r}). Download it again.") from error
    astray = [name for name in names if Path(name).name != name]
    if astray:
        raise WeightsError(f"{index}: shard {astray[0]!r} is not a file of this folder.")
    return names


def _shards(index: Path) -> list[Path]:
    names = shard_names(index)
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise WeightsError(
            f"{index}: {some_names(missing)} of {len(names)} shards missing in this folder. "
            "Download them too."
        )
    return [index.parent / name for name in names]


def open_file(path: Path) -> tuple[dict[str, Entry], dict[str, str]]:
    """The tensors in the file at `path` by name, and its metadata.

    Raises:
        WeightsError: it does not exist, is damaged, or holds more than weights.
    """
    _check_readable(path)
    if is_gguf(path) or path.suffix == GGUF:
        return _open_gguf(path)
    return _open_pickle(path) if path.suffix in PICKLED else _open_safe(path)


def _open_gguf(path: Path) -> tuple[dict[str, Entry], dict[str, str]]:
    header = read_gguf(path)
    check_formats(path, header.tensors)
    return {name: _gguf_entry(path, place) for name, place in header.tensors.items()}, header.metadata


def _gguf_entry(path: Path, place: Place) -> Entry:
    if place.dtype in PLAIN:
        return Entry(place.shape, DTYPES[place.dtype], partial(_read_plain, path, place))
    read = partial(_read_blocks, path, place)
    return Entry(place.shape, torch.float32, read, is_dequantized=True)


def _read_plain(path: Path, place: Place) -> Tensor:
    raw = torch.from_numpy(read_raw(path, place, "u1"))
    return raw.view(DTYPES[place.dtype]).reshape(place.shape)


def _read_blocks(path: Path, place: Place) -> Tensor:
    return torch.from_numpy(read_blocks(path, place))


def _open_safe(path: Path) -> tuple[dict[str, Entry], dict[str, str]]:
    try:
        with _opened(path) as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            entries = {
                name: Entry(
                    tuple(part.get_shape()), DTYPES[part.get_dtype()], partial(_read_safe, path, name)
                )
                for name, part in slices.items()
            }
            return entries, dict(file.metadata() or {})
    except SafetensorError as error:
        raise WeightsError(_damaged(path, error)) from error
    except KeyError as error:
        raise WeightsError(f"{path}: number format {error} is not known here. Convert it to BF16.") from error


def _read_safe(path: Path, name: str) -> Tensor:
    # Opened again for each tensor (0.1 ms): pages of the file leave memory together with the tensor.
    with _opened(path) as file:
        return file.get_tensor(name)


def _opened(path: Path) -> AbstractContextManager[Any]:
    return safe_open(path, framework="pt")


def _check_readable(path: Path) -> None:
    try:
        path.open("rb").close()
    except FileNotFoundError as error:
        near = [file.name for file in sorted(path.parent.glob("*")) if file.suffix in (*SAFE, *PICKLED, GGUF)]
        beside = f" Its folder has: {some_names(near)}." if near else ""
        raise WeightsError(f"{path}: no such file. Correct the path or download the file.{beside}") from error
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error.strerror}.") from error


def _damaged(path: Path, error: Exception) -> str:
    size_mib = path.stat().st_size / 2**20
    with path.open("rb") as file:
        if file.read(24).startswith(b"version https://git-lfs"):
            return f"{path}: a Git LFS pointer, not the weights. Fetch them: git lfs pull"
    return (
        f"{path}: not a complete weights file ({size_mib:.1f} MiB; {error}). It may be truncated or in "
        "another format: compare its size with the original and download it again."
    )


def _open_pickle(path: Path) -> tuple[dict[str, Entry], dict[str, str]]:
    if not zipfile.is_zipfile(path):
        raise WeightsError(_damaged(path, ValueError("not a torch file of version 1.6 or later")))
    try:
        content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except pickle.UnpicklingError as error:
        unsafe = re.search(r"GLOBAL (\S+)", str(error))
        what = f"asks to run {unsafe[1]}" if unsafe else "holds more than weights"
        raise WeightsError(
            f"{path}: refused: this pickle {what}, and nothing of it was run. Use a .safetensors of these "
            "weights, or convert it where running foreign code does no harm."
        ) from error
    except RuntimeError as error:
        raise WeightsError(_damaged(path, error)) from error
    return {name: _loaded(tensor) for name, tensor in _tensors(content, path).items()}, {}


def _loaded(tensor: Tensor) -> Entry:
    return Entry(tuple(tensor.shape), tensor.dtype, lambda: tensor)


def _tensors(content: Any, path: Path) -> dict[str, Tensor]:
    if is_object(content) and is_object(content.get("state_dict")):
        content = content["state_dict"]
    found = content.items() if is_object(content) else ()
    tensors = {str(name): value.detach() for name, value in found if isinstance(value, Tensor)}
    if not tensors:
        raise WeightsError(f"{path}: holds no tensors by name. Is it a checkpoint of weights?")
    return tensors


def some_names(names: Iterable[str], limit: int = 4) -> str:
    """The first `limit` of `names`, and how many more there are."""
    listed = sorted(names)
    more = f", ... {len(listed) - limit} more" if len(listed) > limit else ""
    return ", ".join(listed[:limit]) + more
