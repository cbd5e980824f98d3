"""Sharded tensors on disk, as torch.distributed.checkpoint (DCP) writes them: each rank its parts in a file.

They can be read by any number of ranks, and without a process group.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from flowloom.errors import DiskFullError, FlowloomError, RunError, WeightsError, is_disk_full
from flowloom.models.weight_files import Entry
from flowloom.models.weights import Weights

T = TypeVar("T")

_INDEX = ".metadata"
_DCP = "torch.distributed.checkpoint"
_NAMES = {
    *(
        (f"{_DCP}.metadata", f"{kind}Metadata")
        for kind in ("", "TensorStorage", "ChunkStorage", "BytesStorage")
    ),
    *(
        (f"{_DCP}.metadata", kind)
        for kind in ("MetadataIndex", "TensorProperties", "StorageMeta", "_MEM_FORMAT_ENCODING")
    ),
    (f"{_DCP}.filesystem", "_StorageInfo"),
    ("torch.serialization", "_get_layout"),
    ("torch", "Size"),
    ("pathlib", "PosixPath"),
}
"""The names in an index of shards, beside number formats."""


class SaveGroup:
    """The ranks that write a checkpoint together, in a separate process group; a single one without."""

    def __init__(self, group: dist.ProcessGroup | None = None):
        self.group = group
        self.is_first = group is None or dist.get_rank(group) == 0

    def first_of(self, found: str | None) -> str | None:
        """The finding of the first rank that has one."""
        if self.group is None:
            return found
        all_found: list[str | None] = [None] * dist.get_world_size(self.group)
        dist.all_gather_object(all_found, found, self.group)
        return next(filter(None, all_found), None)

    def from_first(self, act: Callable[[], T]) -> T:
        """The result of `act` on the first rank; on the others it is not called.

        Raises:
            FlowloomError, OSError: that of the first rank; the others get one of the same text.
        """
        if self.group is None:
            return act()
        answer: list[Any] = [None, None]
        try:
            if self.is_first:
                answer[0] = act()
        except (FlowloomError, OSError) as error:
            is_full = isinstance(error, DiskFullError) or (isinstance(error, OSError) and is_disk_full(error))
            answer[1] = DiskFullError(str(error)) if is_full else RunError(str(error))
            raise
        finally:
            dist.broadcast_object_list(answer, group=self.group, group_src=0)
        if answer[1]:
            raise answer[1]
        return answer[0]


def write_shards(folder: Path, tensors: Mapping[str, Tensor], group: SaveGroup) -> None:
    """Write this rank's part of each of `tensors`, DTensors on the CPU. Called by all ranks at once.

    Raises:
        OSError: any rank failed to write, with the first one's reason.
    """
    try:
        dcp.save(dict(tensors), storage_writer=_Writer(folder), process_group=group.group)
    except CheckpointException as error:
        failures = [failure for failure, _ in error.failures.values()]
        raise next((each for each in failures if isinstance(each, OSError)), error) from error


def open_shards(folder: Path, kind: str) -> Weights:
    """The tensors in `folder` that were written with names `kind/NAME`, by NAME; each is read on access."""
    reader = _Reader(folder)
    entries: dict[str, Entry] = {}
    for name, found in reader.index.state_dict_metadata.items():
        if isinstance(found, TensorStorageMetadata) and name.startswith(f"{kind}/"):
            shape, dtype = tuple(found.size), found.properties.dtype
            entries[name.removeprefix(f"{kind}/")] = Entry(
                shape, dtype, partial(_read, reader, name, shape, dtype)
            )
    return Weights(folder, entries, {})


def _read(reader: _Reader, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    whole = torch.empty(shape, dtype=dtype)
    # By its parts: `dcp.load` would read the index for each tensor, and warn where no group is.
    planner = dcp.DefaultLoadPlanner()
    planner.set_up_planner({name: whole}, reader.index, is_coordinator=True)
    reader.set_up_storage_reader(reader.index, is_coordinator=True)
    reader.read_data(planner.create_local_plan(), planner).wait()
    return whole


class _Writer(dcp.FileSystemWriter):
    """Raises the system's reason for a failed write, which torch's own writer of tensors hides."""

    def write_data(self, plan: Any, planner: Any) -> Any:
        try:
            return super().write_data(plan, planner)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


class _Reader(dcp.FileSystemReader):
    """Reads the index once, and as data, never as code."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        with (folder / _INDEX).open("rb") as file:
            index = _Unpickler(file).load()
        if not isinstance(index, Metadata):
            raise WeightsError(f"{folder / _INDEX}: not an index of shards.")
        self.index = index


class _Unpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str, /) -> Any:
        is_dtype = module_name == "torch" and isinstance(getattr(torch, global_name, None), torch.dtype)
        if is_dtype or (module_name, global_name) in _NAMES:
            return super().find_class(module_name, global_name)
        raise pickle.UnpicklingError(f"refused: it asks to run {module_name}.{global_name}")
