"""Disk space of a run: the checkpoints that it keeps, and its caches."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import torch

from flowloom.config.run import ADAPTERS, RunConfig
from flowloom.engine.estimate.footprint import cache_bytes, checkpoint_bytes
from flowloom.engine.estimate.networks import Networks
from flowloom.engine.retention import SPARE_BYTES, num_kept
from flowloom.errors import size_text
from flowloom.run.preflight import Change, DataReport, DiskReport

GB = 1e9


def disk(
    config: RunConfig,
    networks: Networks,
    device: torch.device,
    data: DataReport,
    runs_dir: Path,
    steps: int | None,
) -> DiskReport:
    """Bytes by part, the number of checkpoints that are kept, and whether they fit.

    Args:
        data: `pixels`, `mean_text_tokens` and `distinct_captions` are read.
        steps: of the run; None without a limit.
    """
    each = checkpoint_bytes(config, networks, device)
    text_tokens = round((data.mean_text_tokens or 0) * (data.distinct_captions or 0))
    caches = cache_bytes(config, networks.params, device, data.pixels or 0, text_tokens)
    on_disk = {"latents": config.cache.latents, "caption states": config.cache.text}
    cached = {name: size for name, size in caches.items() if on_disk[name] == "disk"}
    folder = next(path for path in (runs_dir.absolute(), *runs_dir.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(folder).free
    saves = None if steps is None else -(-steps // config.training.save_every)
    kept = num_kept(config, each, saves, free - sum(cached.values()))
    parts = {"checkpoints": _most_at_once(config, kept, saves) * each, **cached}
    total = sum(parts.values())
    return DiskReport(
        parts=parts,
        checkpoint=each,
        kept=kept,
        kept_text=_kept_text(config, each, kept, saves),
        caches=dict(caches),
        total=total,
        free=free,
        fits=total <= free,
    )


def _most_at_once(config: RunConfig, kept: int | None, saves: int | None) -> int:
    """The largest number of checkpoints on the disk: with a limit, one more is written before the oldest
    is deleted."""
    if kept is None:
        return 1
    is_auto = config.checkpoint.keep_last == "auto"
    least = 2 if saves is None else min(2, saves)
    return max(kept, least) if is_auto or kept == saves else kept + 1


def _kept_text(config: RunConfig, each: int, kept: int | None, saves: int | None) -> str:
    size = f"{size_text(each)} each"
    every = f"every {config.training.save_every:,} steps"
    if kept is None:
        return f"all, {size}, one {every} until the run is stopped"
    if kept == saves:
        return f"all {kept:,}, {size}"
    of = f" of {saves:,}" if saves else ""
    if config.checkpoint.keep_last == "auto":
        spare = size_text(SPARE_BYTES)
        return f"the newest {kept:,}{of}, {size}: as many as the disk has room for, with {spare} to spare"
    return f"{kept:,}{of}, {size}"


def disk_changes(found: DiskReport, config: RunConfig) -> Iterator[Change]:
    """Keys to change if the disk is too small."""
    keep_last, room = config.checkpoint.keep_last, found.free // max(found.checkpoint, 1) - 1
    if found.fits:
        return
    if config.checkpoint.keep_every:
        yield Change(path="checkpoint.keep_every", value=None, bytes=None)
    if room >= 1 and keep_last != 1 and (keep_last != "auto" or config.method_kind in ADAPTERS):
        most = (found.kept or room + 1) if keep_last == "auto" else keep_last
        yield Change(path="checkpoint.keep_last", value=max(1, min(room, most - 1)), bytes=None)


def disk_hint(found: DiskReport) -> str:
    """A hint on the disk that the run needs."""
    return f"Or name a disk with {found.total / GB:.1f} GB free by --runs-dir."
