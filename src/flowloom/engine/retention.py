"""Retention of checkpoints: all of an adapter's; of full weights, as many as fit on the disk."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from flowloom.config.run import ADAPTERS, RunConfig
from flowloom.errors import size_text
from flowloom.run.directory import RunDir, step_of

SPARE_BYTES = 2**31
"""Bytes left free beside the next checkpoint, for previews, events and other files."""


class Leaving(NamedTuple):
    """A checkpoint to delete."""

    folder: Path
    reason: str


def leaving_before_save(run_dir: RunDir, config: RunConfig) -> Iterator[Leaving]:
    """The checkpoints to delete, one by one, so that the next one and the spare room fit on the disk.

    Only if `checkpoint.keep_last` is auto and all weights are saved, and never the newest one. Delete each
    before requesting the next: the free space is measured again.
    """
    each = size_of(run_dir.latest_checkpoint())
    while (free := shutil.disk_usage(run_dir.path).free) < each + SPARE_BYTES:
        reason = (
            f"{size_text(free)} are free, and the next checkpoint needs {size_text(each)} with "
            f"{size_text(SPARE_BYTES)} to spare (checkpoint.keep_last is auto)"
        )
        leaving = leaving_when_full(run_dir, config, reason)
        if leaving is None:
            return
        yield leaving


def leaving_when_full(run_dir: RunDir, config: RunConfig, reason: str) -> Leaving | None:
    """The oldest checkpoint that may be deleted for room; None if the configuration keeps all."""
    if config.checkpoint.keep_last != "auto" or config.method_kind in ADAPTERS:
        return None
    older = (folder for folder in run_dir.checkpoints()[:-1] if not _is_kept_for_good(folder, config))
    return next((Leaving(folder, reason) for folder in older), None)


def leaving_after_save(run_dir: RunDir, config: RunConfig) -> list[Leaving]:
    """The checkpoints beyond the number in `checkpoint.keep_last`, oldest first."""
    keep_last = config.checkpoint.keep_last
    if keep_last == "auto":
        return []
    reason = f"checkpoint.keep_last is {keep_last}"
    older = run_dir.checkpoints()[:-keep_last]
    return [Leaving(folder, reason) for folder in older if not _is_kept_for_good(folder, config)]


def _is_kept_for_good(folder: Path, config: RunConfig) -> bool:
    every = config.checkpoint.keep_every
    return every is not None and step_of(folder) % every == 0


def size_of(folder: Path | None) -> int:
    """The bytes of a checkpoint's files; 0 without one."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder else 0


def num_kept(config: RunConfig, each: int, num_saves: int | None, free: int) -> int | None:
    """The number of checkpoints at one time by `retention` alone; None without a limit.

    Args:
        each: bytes of one.
        num_saves: over the run; None without an end.
        free: bytes on the disk before the run.
    """
    keep_last = config.checkpoint.keep_last
    if keep_last != "auto":
        by_rule = keep_last
    elif config.method_kind in ADAPTERS:
        return num_saves
    else:
        by_rule = max(1, (free - SPARE_BYTES) // max(each, 1))
    if num_saves is None:
        return by_rule
    every = config.checkpoint.keep_every
    step = config.training.save_every
    kept_for_good = num_saves * step // every if every and keep_last != "auto" else 0
    return min(by_rule + kept_for_good, num_saves)
