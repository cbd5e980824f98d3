"""Shards on disk: whole tensors come back, a full disk is named, and an index runs no code."""

from __future__ import annotations

import os
import pickle
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from flowloom.engine.shard_files import SaveGroup, open_shards, write_shards
from flowloom.errors import DiskFullError, is_disk_full


@pytest.fixture
def mesh() -> Iterator[DeviceMesh]:
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield init_device_mesh("cpu", (1,))
    finally:
        dist.destroy_process_group()


def write(folder: Path, mesh: DeviceMesh) -> dict[str, torch.Tensor]:
    whole = {
        "weights/a.weight": torch.randn(300, 200),
        "weights/a.bias": torch.randn(7).bfloat16(),
        "optimizer/a.weight/exp_avg": torch.randn(300, 200),
    }
    placed = {name: distribute_tensor(tensor, mesh, [Shard(0)]) for name, tensor in whole.items()}
    group = dist.new_group(backend="gloo")
    assert isinstance(group, dist.ProcessGroup)
    write_shards(folder, placed, SaveGroup(group))
    return whole


def test_tensors_come_back_by_kind(mesh: DeviceMesh, tmp_path: Path) -> None:
    whole = write(tmp_path, mesh)
    weights, states = (open_shards(tmp_path, kind) for kind in ("weights", "optimizer"))
    assert set(weights) == {"a.weight", "a.bias"}
    assert set(states) == {"a.weight/exp_avg"}
    assert weights.dtypes["a.bias"] == torch.bfloat16
    assert weights.shapes["a.weight"] == (300, 200)
    found = {f"weights/{name}": tensor for name, tensor in weights.items()}
    found |= {f"optimizer/{name}": tensor for name, tensor in states.items()}
    assert all(torch.equal(found[name], tensor) for name, tensor in whole.items())


def test_a_disk_that_fills_up_within_a_shard_is_named(mesh: DeviceMesh, tmp_path: Path) -> None:
    """Writing past the process's file size limit fails as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError, match="File too large") as error:
            write(tmp_path, mesh)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert is_disk_full(error.value)


def test_an_index_that_asks_to_run_code_is_refused(mesh: DeviceMesh, tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {tmp_path / 'ran'}",)

    write(tmp_path, mesh)
    (tmp_path / ".metadata").write_bytes(pickle.dumps(Harm()))
    with pytest.raises(pickle.UnpicklingError, match="refused"):
        open_shards(tmp_path, "weights")
    assert not (tmp_path / "ran").exists()


def test_a_failure_of_the_first_rank_is_its_own_error(mesh: DeviceMesh) -> None:
    group = dist.new_group(backend="gloo")
    assert isinstance(group, dist.ProcessGroup)
    assert SaveGroup(group).from_first(lambda: 3) == 3
    assert SaveGroup(group).first_of("a finding") == "a finding"

    def fail() -> None:
        raise DiskFullError("full")

    with pytest.raises(DiskFullError, match="full"):
        SaveGroup(group).from_first(fail)
