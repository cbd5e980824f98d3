"""Weights on disk: opened lazily by mmap, assigned to a module tensor by tensor, written atomically."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor, nn

from flowloom.errors import WeightsError, disk_full, is_disk_full
from flowloom.files import replacing
from flowloom.models.dequantize import dequantized
from flowloom.models.weight_files import DTYPE_NAMES, Entry, files_of, open_file, some_names
from flowloom.models.weight_formats import why_unreadable


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

    @cached_property
    def is_dequantized(self) -> bool:
        """True if the file holds some of them in fewer bits than they have here."""
        return any(entry.is_dequantized for entry in self._entries.values())

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
            any(part.is_dequantized for part in parts),
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

    `.safetensors`, `.sft` and `.gguf` are read by mmap. `.pth`, `.pt`, `.ckpt` and `.bin` are pickles: also
    by mmap, as weights only, never as code. Quantized weights become float32 when they are read.

    Raises:
        WeightsError: nothing is there, a file is damaged, holds more than weights, or numbers that only
            count with scales beside them.
    """
    path = Path(path)
    entries: dict[str, Entry] = {}
    origins: dict[str, Path] = {}
    metadata: dict[str, str] = {}
    for file in files_of(path):
        found, file_metadata = open_file(file)
        twice = next((name for name in found if name in entries), None)
        if twice:
            raise WeightsError(
                f"{path}: both {origins[twice].name} and {file.name} hold {twice}. Name the one file to load."
            )
        entries |= found
        origins |= dict.fromkeys(found, file)
        metadata |= file_metadata
    entries = dequantized(path, entries, metadata)
    unreadable = why_unreadable(entries)
    if unreadable:
        raise WeightsError(f"{path} {unreadable}")
    return Weights(path, entries, metadata)


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


Assign = Callable[[nn.Module, Weights, torch.device, torch.dtype], None]
"""Puts weights onto a module on the meta device, as `assign_weights` does."""


def assign_weights(
    module_on_meta: nn.Module, weights: Weights, device: torch.device, dtype: torch.dtype
) -> None:
    """Put `weights` onto `module_on_meta`, straight to `device` and `dtype`, one tensor at a time.

    Memory holds the finished tensors and the one that is being read, never a second copy of the model.

    Raises:
        WeightsError: names or shapes do not fit; the message lists which.
    """
    check_names(module_on_meta, weights)
    placed = {name: read_onto(weights, name, device, dtype) for name in module_on_meta.state_dict()}
    module_on_meta.load_state_dict(placed, assign=True)
    left = [name for name, buffer in module_on_meta.named_buffers() if buffer.is_meta]
    assert not left or device.type == "meta", (
        f"{left[0]} is in no checkpoint and must not be made on the meta device"
    )


def read_onto(weights: Weights, name: str, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The tensor `name` as `place` makes it; on the meta device nothing is read."""
    if device.type != "meta":
        return place(weights[name], device, dtype)
    stored = weights.dtypes[name]
    wanted = dtype if stored.is_floating_point else stored
    return torch.empty(weights.shapes[name], dtype=wanted, device=device)


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
        header[name] = {"dtype": DTYPE_NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
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
