"""Checkpoints stay unless the configuration or the disk requires removal; each is reported with a reason."""

from __future__ import annotations

import errno
import io
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from flowloom.engine import checkpoint
from flowloom.engine.__main__ import run_engine
from flowloom.engine.retention import num_kept, size_of
from flowloom.errors import DiskFullError
from flowloom.run.directory import RunDir
from flowloom.run.events import read_events

DISK_BYTES = 200 * 2**20
LORA = {"lora": {"rank": 2, "alpha": 2}}


def steps(run_dir: RunDir) -> list[int]:
    return [int(folder.name[-8:]) for folder in run_dir.checkpoints()]


def removed(run_dir: RunDir) -> list[dict[str, Any]]:
    return [event for event in read_events(run_dir.events_jsonl) if event["kind"] == "removed"]


@pytest.mark.parametrize("sections", [LORA, {}], ids=["lora", "full"])
def test_every_checkpoint_stays_by_default(make_run: Callable[..., RunDir], sections: dict[str, Any]) -> None:
    run_dir = make_run(training={"save_every": 1}, limits={"max_steps": 5}, **sections)
    if shutil.disk_usage(run_dir.path).free < 2**32:
        pytest.skip("this disk has no room to spare")
    run_engine(run_dir)
    assert steps(run_dir) == [1, 2, 3, 4, 5]
    assert removed(run_dir) == []


@pytest.mark.parametrize("sections", [LORA, {}], ids=["lora", "full"])
def test_a_number_is_followed_and_each_removal_is_reported(
    make_run: Callable[..., RunDir], sections: dict[str, Any]
) -> None:
    run_dir = make_run(
        training={"save_every": 1},
        checkpoint={"keep_last": 2, "keep_every": 3},
        limits={"max_steps": 6},
        **sections,
    )
    run_engine(run_dir)
    assert steps(run_dir) == [3, 5, 6]
    assert [event["step"] for event in removed(run_dir)] == [1, 2, 4]
    assert {event["reason"] for event in removed(run_dir)} == {"checkpoint.keep_last is 2"}


def test_full_weights_make_room_for_the_next_and_report_it(
    make_run: Callable[..., RunDir], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every disk is too small for this much room to spare."""
    monkeypatch.setattr("flowloom.engine.retention.SPARE_BYTES", 2**60)
    run_dir = make_run(training={"save_every": 1}, checkpoint={"keep_every": 2}, limits={"max_steps": 5})
    run_engine(run_dir)
    assert steps(run_dir) == [2, 4, 5]
    assert [event["step"] for event in removed(run_dir)] == [1, 3]
    assert "to spare" in removed(run_dir)[0]["reason"]
    lora = make_run("lora", training={"save_every": 1}, limits={"max_steps": 3}, **LORA)
    run_engine(lora)
    assert steps(lora) == [1, 2, 3], "adapters are small, and are compared"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "none", str(path)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("only root mounts a small disk")
    yield path
    subprocess.run(["umount", "--lazy", str(path)], check=True)


def test_a_run_on_a_small_disk_continues_with_the_checkpoints_that_fit(
    make_run: Callable[..., RunDir], make_config: Callable[..., Any], small_disk: Path
) -> None:
    sizes = make_run("sizes", training={"save_every": 1}, limits={"max_steps": 1})
    run_engine(sizes)
    each = size_of(sizes.latest_checkpoint())
    assert each * 2 < DISK_BYTES
    run_dir = RunDir.create("full", small_disk)
    config = make_config(training={"save_every": 1}, limits={"max_steps": 2 * DISK_BYTES // each})
    run_dir.write_run(config, "a test")
    run_engine(run_dir)
    assert steps(run_dir)[-1] == config.limits.max_steps
    assert len(removed(run_dir)) >= 1


def test_adapters_on_a_full_disk_fail_rather_than_delete(
    make_config: Callable[..., Any], small_disk: Path
) -> None:
    run_dir = RunDir.create("lora", small_disk)
    run_dir.write_run(make_config(training={"save_every": 1}, limits={"max_steps": 400}, **LORA), "a test")
    with (small_disk / "filler").open("wb") as file:
        file.write(b"x" * (DISK_BYTES - 3 * 2**20))
    with pytest.raises(DiskFullError, match="the disk is full") as error:
        run_engine(run_dir)
    assert "0 MiB" not in str(error.value)
    assert steps(run_dir) == list(range(1, len(steps(run_dir)) + 1))
    failed = [event for event in read_events(run_dir.events_jsonl) if event["kind"] == "failed"]
    assert not failed or "Make room" in failed[0]["message"]


@pytest.mark.parametrize(
    ("sections", "free", "saves", "kept"),
    [
        (LORA, 0, 40, 40),
        (LORA, 0, None, None),
        ({}, 2**31 + 1050, None, 10),
        ({}, 2**31 + 1050, 4, 4),
        ({}, 0, 40, 1),
        ({"checkpoint": {"keep_last": 3}}, 0, 40, 3),
        ({"checkpoint": {"keep_last": 3}}, 0, 2, 2),
        (LORA | {"checkpoint": {"keep_last": 3}}, 10**12, None, 3),
        ({"checkpoint": {"keep_last": 2, "keep_every": 5000}}, 0, 20, 2 + 4),
    ],
)
def test_the_number_of_checkpoints_that_stay(
    make_config: Callable[..., Any], sections: dict[str, Any], free: int, saves: int | None, kept: int | None
) -> None:
    """Of 100 bytes each, one every 1,000 steps."""
    assert num_kept(make_config(**sections), 100, saves, free) == kept


@pytest.mark.parametrize("room", range(0, 16_000, 1_111))
def test_a_disk_that_fills_up_anywhere_in_an_optimizer_file_is_reported_as_full(
    room: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class FullDisk(io.RawIOBase):
        position = 0

        def writable(self) -> bool:
            return True

        def write(self, data: Any, /) -> int:
            if self.position >= room:
                raise OSError(errno.ENOSPC, "No space left on device")
            count = min(len(memoryview(data)), room - self.position)
            self.position += count
            return count

    monkeypatch.setattr(Path, "open", lambda *_: FullDisk())
    content = {"a": torch.zeros(3000), "b": [torch.zeros(10) for _ in range(20)]}
    with pytest.raises(OSError, match="No space left"):
        checkpoint._torch_save(tmp_path / "optimizer.pt", content)
