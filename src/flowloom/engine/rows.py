"""The rows of a run, kept so that a resumed run reads the same ones in the same order.

The rows of a folder of images are copied into the run directory when the run begins. Of a JSONL only digests
are kept: a resumed run reads the current file, and warns if it has changed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypedDict, TypeVar

from flowloom.config.data_sections import DatasetSection
from flowloom.config.flow_format.sections import DataloaderSection
from flowloom.config.model_files import is_folder
from flowloom.config.run import RunConfig
from flowloom.data.clip_rules import clip_rules
from flowloom.data.dataset import dataset_sources
from flowloom.data.index import read_columns
from flowloom.datasets.build.build import digest_of
from flowloom.datasets.build.update import FolderRows, folder_rows, freshness, left_out_message, num_differing
from flowloom.engine.parallel.ranks import Ranks
from flowloom.files import replacing, write_json
from flowloom.json_types import is_object
from flowloom.run.directory import RunDir

Section = TypeVar("Section", DataloaderSection, DatasetSection)
Warn = Callable[[str], None]


class _Known(TypedDict):
    """The record of a JSONL at the start of a run."""

    digest: str
    num_rows: int
    sizes: str
    """Digest of all widths and heights, in order: if it is equal, so is the order of samples."""


def keep_rows(config: RunConfig, run_dir: RunDir, ranks: Ranks, warn: Warn) -> RunConfig:
    """`config` with this run's rows in place of folders; `warn` is called with each difference.

    Raises:
        DataError: a folder cannot be read, or holds no image with a caption.
    """
    if ranks.is_first:
        for message in _kept(config, run_dir, is_resumed=run_dir.latest_checkpoint() is not None):
            warn(message)
    ranks.wait()
    sections = {"dataloader": _in_run(config.dataloader, run_dir)}
    datasets = [_in_run(section, run_dir) for section in config.datasets]
    return config.model_copy(update={**sections, "datasets": datasets})


def _in_run(section: Section, run_dir: RunDir) -> Section:
    folder = section.jsonl_metadata_path
    if not is_folder(folder):
        return section
    paths = {"jsonl_metadata_path": str(_place(Path(folder), run_dir)), "image_folder_path": folder}
    return section.model_copy(update=paths)


def _place(folder: Path, run_dir: RunDir) -> Path:
    """The path of the rows of `folder` in the run directory."""
    digest = hashlib.blake2b(os.fsencode(folder), digest_size=4).hexdigest()
    return run_dir.path / "data" / digest / f"{folder.name or 'folder'}.jsonl"


def _kept(config: RunConfig, run_dir: RunDir, *, is_resumed: bool) -> Iterator[str]:
    """Keep the rows of every dataset; yield warnings about each."""
    paths = [one.path for one in dataset_sources(config)]
    with_videos = clip_rules(config) is not None
    for folder in (path for path in paths if path.is_dir()):
        kept = _place(folder, run_dir)
        rows = folder_rows(folder, with_videos=with_videos)
        yield from (
            _compared(rows, folder, kept) if is_resumed and kept.is_file() else _copied(rows, folder, kept)
        )
    yield from _about_files([path for path in paths if path.exists()], run_dir, is_resumed=is_resumed)


def _copied(rows: FolderRows, folder: Path, kept: Path) -> Iterator[str]:
    kept.parent.mkdir(parents=True, exist_ok=True)
    with rows.path.open("rb") as source, replacing(kept) as target:
        shutil.copyfileobj(source, target)
    if rows.left_out:
        yield left_out_message(folder, rows.left_out)


def _compared(rows: FolderRows, folder: Path, kept: Path) -> Iterator[str]:
    """Warnings about differences between the run's rows and the folder."""
    now = rows.path.read_bytes().splitlines()
    if changed := num_differing(kept.read_bytes().splitlines(), now):
        yield (
            f"{folder}: {changed:,} rows changed since this run began. It continues with the original "
            "images and captions; start a new run to train the changed ones."
        )


def _about_files(paths: list[Path], run_dir: RunDir, *, is_resumed: bool) -> Iterator[str]:
    record = run_dir.path / "data" / "rows.json"
    known: dict[str, _Known] = _read(record) if is_resumed else {}
    found = {
        str(path): _known_of(_place(path, run_dir) if path.is_dir() else path)
        for path in dict.fromkeys(paths)
    }
    # A run that was resumed on another machine has the same data at other paths.
    by_digest = {rows["digest"]: rows for rows in known.values()}
    for path, now in found.items():
        before = known.get(path) or by_digest.get(now["digest"])
        if known and before is None:
            yield f"{path}: this run started with other data. The order of samples changes from here on."
        elif before and before["digest"] != now["digest"]:
            yield _difference(path, before, now)
        elif (fresh := freshness(Path(path))) and fresh.is_outdated:
            yield fresh.message(Path(path))
    if found:
        record.parent.mkdir(exist_ok=True)
        write_json(record, found)


def _difference(path: str, before: _Known, now: _Known) -> str:
    if before["sizes"] == now["sizes"]:
        return (
            f"{path}: captions changed since this run began. It continues in the same order, with the "
            "new captions."
        )
    return (
        f"{path}: rows changed since this run began ({before['num_rows']:,} then, {now['num_rows']:,} now). "
        "The order of samples changes: this epoch may repeat or omit images."
    )


def _known_of(path: Path) -> _Known:
    columns, _ = read_columns(path)
    sizes = hashlib.blake2b(columns["width"].tobytes(), digest_size=16)
    sizes.update(columns["height"].tobytes())
    return {"digest": digest_of(path), "num_rows": len(columns["width"]), "sizes": sizes.hexdigest()}


def _read(record: Path) -> dict[str, Any]:
    """The record; empty for runs of earlier versions, or if it is damaged."""
    try:
        content = json.loads(record.read_text())
    except (OSError, ValueError):
        return {}
    return content if is_object(content) else {}
