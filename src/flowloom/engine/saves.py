"""When and how a run is saved: one checkpoint at a time, written while training continues, and retention."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from flowloom.engine import checkpoint
from flowloom.engine.host_memory import SNAPSHOT_ROOM, available_bytes
from flowloom.engine.parallel.ranks import PATIENCE
from flowloom.engine.report import Reporter
from flowloom.engine.retention import Leaving, leaving_after_save, leaving_before_save, leaving_when_full
from flowloom.engine.shard_files import SaveGroup
from flowloom.engine.snapshot import HostBuffers, Snapshot, copied_bytes, take_snapshot
from flowloom.engine.state import TrainState
from flowloom.errors import DiskFullError, size_text
from flowloom.run.directory import RunDir, step_of


class Saves:
    """Saves the state of a run. A checkpoint is reported when it is on the disk."""

    def __init__(self, run_dir: RunDir, state: TrainState, reporter: Reporter, metadata: dict[str, str]):
        self.run_dir, self.state, self.reporter, self.metadata = run_dir, state, reporter, metadata
        self.config = state.config
        self._buffers = HostBuffers()
        self._has_warned = False
        self._writing: Future[None] | None = None
        # Training uses the other group meanwhile.
        self._group = SaveGroup()
        if state.file_shards:
            group: Any = dist.new_group(backend="gloo", timeout=PATIENCE)
            self._group = SaveGroup(group)
        # The checkpoint that the run resumed from is already on disk.
        self._saved_step = state.position.step or -1

    def save(self, *, in_background: bool = False) -> None:
        """Write a checkpoint of the current step, unless there is one, and remove old ones.

        Args:
            in_background: return as soon as the state is copied to host memory. Otherwise, and with a host
                optimizer of the network's weights, the checkpoint is on the disk when this returns, on every
                rank.

        Raises:
            FlowloomError, OSError: this save or the one before it failed.
        """
        position = self.state.position
        self.reporter.flush(position)
        self.wait()
        if position.step == self._saved_step:
            return
        if self.state.host and not self.state.adapter:
            in_background = False  # the copy would double the memory of the host
        takes_part = self.state.runs_network
        buffers = self._buffers if in_background and self._has_room() else None
        snapshot = take_snapshot(self.state, self.metadata, buffers) if takes_part else None
        if snapshot is None or not (self.state.ranks.is_first or snapshot.shards):
            self._saved_step = position.step
        elif buffers:
            self._writing = self._start(snapshot)
        else:
            self._write(snapshot)
        if not in_background:
            self.state.ranks.wait()

    def _has_room(self) -> bool:
        """True if the host has memory for a copy; otherwise training waits, with a warning the first time."""
        if not self.state.ranks.is_first or self.state.file_shards:
            return True
        needed, free = copied_bytes(self.state) - self._buffers.num_bytes, available_bytes()
        has_room = SNAPSHOT_ROOM * needed <= free
        if not has_room and not self._has_warned:
            self._has_warned = True
            self.reporter.emit(
                "warning",
                message="Training waits while checkpoints are written: their copy needs "
                f"{size_text(needed)} of host memory, and {size_text(free)} are free.",
                hint="Free memory, or set checkpoint.in_background to false.",
            )
        return has_room

    @property
    def is_writing(self) -> bool:
        """True while a checkpoint is written in the background."""
        return self._writing is not None and not self._writing.done()

    def check(self) -> None:
        """Raise the error of a save in the background that failed."""
        if not self.is_writing:
            self.wait()

    def wait(self) -> None:
        """Return when the save in the background is finished.

        Raises:
            FlowloomError, OSError: it failed.
        """
        writing, self._writing = self._writing, None
        if writing:
            writing.result()

    def _start(self, snapshot: Snapshot) -> Future[None]:
        thread = ThreadPoolExecutor(1, thread_name_prefix="save")
        writing = thread.submit(self._write_beside, snapshot)
        thread.shutdown(wait=False)
        return writing

    def _write_beside(self, snapshot: Snapshot) -> None:
        device = self.state.precision.device
        # Frozen weights are read from the device, without waiting for the steps that are in its queue.
        stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        with torch.cuda.stream(stream) if stream else nullcontext():
            self._write(snapshot)

    def _write(self, snapshot: Snapshot) -> None:
        try:
            self._group.from_first(self._prepare)
            folder = self._write_checkpoint(snapshot)
        except FileNotFoundError:
            self.run_dir.require_in_place()
            raise
        self._saved_step = snapshot.step
        if self._group.is_first:
            self.reporter.emit("saved", step=snapshot.step, dir=str(folder.relative_to(self.run_dir.path)))
            self._remove(leaving_after_save(self.run_dir, self.config))

    def _prepare(self) -> None:
        self.run_dir.require_in_place()
        self._remove(leaving_before_save(self.run_dir, self.config))

    def _write_checkpoint(self, snapshot: Snapshot) -> Path:
        """Write a checkpoint; on a full disk remove older ones, as far as the configuration allows."""
        while True:
            try:
                return checkpoint.save(self.run_dir, snapshot, self._group)
            except DiskFullError as error:
                if not self._group.from_first(partial(self._makes_room, error)):
                    raise

    def _makes_room(self, error: DiskFullError) -> bool:
        leaving = leaving_when_full(self.run_dir, self.config, str(error))
        if leaving is None or not error.can_be_freed:
            return False
        self._remove([leaving])
        return True

    def _remove(self, leaving: Iterable[Leaving]) -> None:
        for folder, reason in leaving:
            checkpoint.discard(folder)
            path = str(folder.relative_to(self.run_dir.path))
            self.reporter.emit("removed", step=step_of(folder), dir=path, reason=reason)
