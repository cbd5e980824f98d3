"""Weights on disk: opened lazily by mmap, assigned to a module tensor by tensor, written atomically."""

from __future__ import annotations

import json
import math
import pickle
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from functools import cached_property, partial
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from flowloom.errors import WeightsError, disk_full, is_disk_full
from flowloom.files import replacing
from flowloom.json_types import is_object
from flowloom.models.header import INDEX, PICKLED, SAFE
from flowloom.models.weight_formats import why_gguf, why_unreadable

_DTYPES = {
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
_DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


class Entry(NamedTuple):
    """A tensor that is still on disk."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]


class Weights(Mapping[str, Tensor]):
    """The tensors of a file or a folder by name; each is read on access and not kept.

    Tensors are views of the file: clone those that must outlive changes to it.
    """

    def __init__(self, path: Path, entries: Mapping[str, Entry], metadata: Mapping[str, str]):
        self.path = path
        self.metadata = dict(metadata)
        self._entries = dict(entries)

    def __getitem__(self, name: str) -> Tensor:
        return self._entries[name].read()

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        # Mapping's own would read the tensor.
        return name in self._entries

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape by name, from the headers alone."""
        return {name: entry.shape for name, entry in self._entries.items()}

    @cached_property
    def dtypes(self) -> dict[str, torch.dtype]:
        """Number format by name, from the headers alone."""
        return {name: entry.dtype for name, entry in self._entries.items()}

    def below(self, *prefixes: str) -> Weights:
        """The tensors under the first of `prefixes` in use, without the prefix; all if none is."""
        for prefix in prefixes:
            inside = {name.removeprefix(prefix): (name,) for name in self if name.startswith(prefix)}
            if inside:
                return self.gathered(inside)
        return self

    def gathered(self, names: Mapping[str, tuple[str, ...]]) -> Weights:
        """The same tensors under new names: `names[new]` are the old ones, joined along their rows.

        Missing old names are left out.
        """
        entries = {new: self._joined(olds) for new, olds in names.items()}
        return Weights(self.path, entries, self.metadata)

    def _joined(self, names: tuple[str, ...]) -> Entry:
        parts = [self._entries[name] for name in names]
        if len(parts) == 1:
            return parts[0]
        rows = sum(part.shape[0] for part in parts)
        return Entry(
            (rows, *parts[0].shape[1:]),
            parts[0].dtype,
            lambda: torch.cat([part.read() for part in parts]),
        )

    def reshaped(self, shapes: Mapping[str, tuple[int, ...]]) -> Weights:
        """The same tensors, those in `shapes` with the same numbers in another shape."""
        entries = {
            name: entry._replace(shape=shapes[name], read=partial(_read_as, entry, shapes[name]))
            if name in shapes
            else entry
            for name, entry in self._entries.items()
        }
        return Weights(self.path, entries, self.metadata)


def _read_as(entry: Entry, shape: tuple[int, ...]) -> Tensor:
    return entry.read().reshape(shape)


def open_weights(path: Path) -> Weights:
    """The tensors at `path`: a file, a folder of files, or the index of shards.

    `.safetensors` and `.sft` are read by mmap. `.pth`, `.pt`, `.ckpt` and `.bin` are pickles: also by mmap,
    as weights only, never as code.

    Raises:
        WeightsError: nothing is there, a file is damaged, holds more than weights, or numbers that only
            count with scales beside them.
    """
    path = Path(path)
    entries: dict[str, Entry] = {}
    origins: dict[str, Path] = {}
    metadata: dict[str, str] = {}
    for file in _files(path):
        _check_readable(file)
        found, file_metadata = _open_pickle(file) if file.suffix in PICKLED else _open_safe(file)
        twice = next((name for name in found if name in entries), None)
        if twice:
            raise WeightsError(
                f"{path}: both {origins[twice].name} and {file.name} hold {twice}. Name the one file to load."
            )
        entries |= found
        origins |= dict.fromkeys(found, file)
        metadata |= file_metadata
    unreadable = why_unreadable(entries)
    if unreadable:
        raise WeightsError(f"{path} {unreadable}")
    return Weights(path, entries, metadata)


def _files(path: Path) -> list[Path]:
    if path.name.endswith(INDEX) and path.is_file():
        return _shards(path)
    if not path.is_dir():
        return [path]
    # The shortest name is the plain one, not a variant such as model.fp16.safetensors.index.json.
    indexes = sorted(path.glob(f"*{INDEX}"), key=lambda index: (".bin." in index.name, len(index.name)))
    if indexes:
        return _shards(indexes[0])
    for suffixes in (SAFE, PICKLED):
        files = sorted(file for file in path.iterdir() if file.suffix in suffixes and file.is_file())
        if files:
            return files
    what = "no file is named, and this folder" if path == Path() else f"{path}: this folder"
    raise WeightsError(f"{what} holds no weights ({', '.join(SAFE + PICKLED)}).")


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


def _open_safe(path: Path) -> tuple[dict[str, Entry], dict[str, str]]:
    try:
        with _opened(path) as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            entries = {
                name: Entry(
                    tuple(part.get_shape()), _DTYPES[part.get_dtype()], partial(_read_safe, path, name)
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
        near = [file.name for file in sorted(path.parent.glob("*")) if file.suffix in SAFE + PICKLED]
        beside = f" Its folder has: {some_names(near)}." if near else ""
        raise WeightsError(f"{path}: no such file. Correct the path or download the file.{beside}") from error
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error.strerror}.") from error
    unreadable = why_gguf(path)
    if unreadable:
        raise WeightsError(f"{path} {unreadable}")


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


def check_names(module: nn.Module, weights: Weights) -> None:
    """Compare names and shapes of `weights` with those of `module`, reading no tensor.

    Raises:
        WeightsError: some are missing, unexpected or misshapen.
    """
    needed = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    given = weights.shapes
    misshapen = [
        f"{name} is {given[name]}, not {shape}"
        for name, shape in needed.items()
        if name in given and given[name] != shape
    ]
    findings = {
        "missing": needed.keys() - given.keys(),
        "unexpected": given.keys() - needed.keys(),
        "misshapen": misshapen,
    }
    faults = [f"{len(names)} {fault} ({some_names(names)})" for fault, names in findings.items() if names]
    if faults:
        network = type(module).__name__
        raise WeightsError(
            f"{weights.path}: does not fit {network}: {'; '.join(faults)}. Is it the right file?"
        )


def some_names(names: Iterable[str], limit: int = 4) -> str:
    """The first `limit` of `names`, and how many more there are."""
    listed = sorted(names)
    more = f", ... {len(listed) - limit} more" if len(listed) > limit else ""
    return ", ".join(listed[:limit]) + more


def assign_weights(
    module_on_meta: nn.Module, weights: Weights, device: torch.device, dtype: torch.dtype
) -> None:
    """Put `weights` onto `module_on_meta`, straight to `device` and `dtype`, one tensor at a time.

    Memory holds the finished tensors and the one that is being read, never a second copy of the model.

    Raises:
        WeightsError: names or shapes do not fit; the message lists which.
    """
    check_names(module_on_meta, weights)
    placed = {name: place(weights[name], device, dtype) for name in module_on_meta.state_dict()}
    module_on_meta.load_state_dict(placed, assign=True)
    left = [name for name, buffer in module_on_meta.named_buffers() if buffer.is_meta]
    assert not left or device.type == "meta", (
        f"{left[0]} is in no checkpoint and must not be made on the meta device"
    )


def place(tensor: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """A copy of `tensor` on `device`, in `dtype` if it is floating-point; never a view of its file."""
    wanted = dtype if tensor.is_floating_point() else tensor.dtype
    return tensor.to(device, wanted, copy=True).contiguous()


def save_weights(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write `tensors` to `path` as safetensors, atomically.

    Raises:
        DiskFullError: there is no room; an existing file is unchanged.
    """
    path = Path(path)
    try:
        with replacing(path) as file:
            _write_safe(file, tensors, metadata)
    except OSError as error:
        if not is_disk_full(error):
            raise
        raise disk_full(path, error, sum(nbytes for _, _, nbytes in _sizes(tensors).values())) from error


def _write_safe(file: IO[bytes], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    # safetensors' own writer copies every tensor before the first byte is written, and hides errno.
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    # The widest formats first keep every tensor aligned to its own width.
    sizes = _sizes(tensors)
    order = sorted(sizes, key=lambda name: (-sizes[name][0].itemsize, name))
    end = 0
    for name in order:
        dtype, shape, nbytes = sizes[name]
        start, end = end, end + nbytes
        header[name] = {"dtype": _DTYPE_NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for name in order:
        flat = tensors[name].detach().cpu().contiguous().reshape(-1)
        file.write(flat.view(torch.uint8).numpy().data)


def _sizes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[torch.dtype, tuple[int, ...], int]]:
    """Number format, shape and bytes of each, without reading weights on disk."""
    if isinstance(tensors, Weights):
        entries = ((name, tensors.dtypes[name], shape) for name, shape in tensors.shapes.items())
    else:
        entries = ((name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items())
    return {name: (dtype, shape, math.prod(shape) * dtype.itemsize) for name, dtype, shape in entries}
