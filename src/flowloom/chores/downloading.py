"""Downloads at work: in the run's own process (chores/download.py is their form)."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flowloom.chores.base import Progress
from flowloom.chores.download import DownloadConfig, Item
from flowloom.data.library.hashes import known_hashes, mark_of, recorded
from flowloom.data.library.look import SAFE, look
from flowloom.errors import RunError
from flowloom.parts.downloads.addresses import Allowed
from flowloom.parts.downloads.ask import HUB, Asker
from flowloom.parts.downloads.fetch import Stopped, Watch, already_there, fetch


@dataclass
class _Sum:
    """How far all files are together."""

    progress: Progress
    count: int
    before: int = 0
    """Bytes of the files that are finished."""
    number: int = 0
    sizes: dict[int, int] = field(default_factory=dict)

    def on_bytes(self, done: int, size: int | None) -> None:
        if size is not None:
            self.sizes[self.number] = size
        # Of files that have not begun, nobody knows the size yet.
        total = sum(self.sizes.values()) if len(self.sizes) == self.count else None
        self.progress.step(self.before + done, total)

    def finish(self, size: int) -> None:
        """The file at hand is here."""
        self.sizes[self.number] = size
        self.before += size
        self.progress.step(self.before, self.before if self.number + 1 == self.count else None)


def work(config: DownloadConfig, progress: Progress) -> None:
    """Work of the chore `download`; its result names every file with its size and SHA-256."""
    folder = Path(config.target_dir).expanduser().absolute()
    folder.mkdir(parents=True, exist_ok=True)
    asker = Asker(
        Allowed.from_environment(), os.environ.get("HF_ENDPOINT") or HUB, os.environ.get("HF_TOKEN")
    )
    total = _Sum(progress, len(config.items))
    watch = Watch(total.on_bytes, progress.is_stopped, progress.phase)
    earlier = known_hashes(progress.run_dir.path / "result.json")
    files: list[dict[str, Any]] = []
    for total.number, item in enumerate(config.items):
        target = _target(folder, item)
        try:
            done = earlier.get(mark_of(target)) or _one(asker, item, target, watch, config.overwrite)
        except Stopped:
            return
        files.append(recorded(target, done))
        total.finish(target.stat().st_size)
        progress.save_result({"files": files})
        _tell_damage(target, progress)


def _target(folder: Path, item: Item) -> Path:
    target = folder / item.saved_as
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.parent.resolve().is_relative_to(folder.resolve()) or target.is_symlink():
        raise RunError(f"{target}: a link leads out of {folder}. Choose another save_as.")
    return target


def _one(asker: Asker, item: Item, target: Path, watch: Watch, overwrite: bool) -> str:
    """Bring one file; its SHA-256."""
    url = asker.hub_url(item.repo, item.name, item.revision) if item.repo else asker.file_url(item.url)
    wanted = item.sha256.lower() or None
    watch.on_phase("downloading")
    if target.exists():
        same = already_there(asker, url, target, watch, wanted)
        if same:
            return same
        if not overwrite:
            raise RunError(
                f"{target}: there is another file of that name. Give this one save_as, or say overwrite."
            )
    return fetch(asker, url, target, watch, wanted).sha256


def _tell_damage(target: Path, progress: Progress) -> None:
    if target.suffix in SAFE and (problem := look(target).problem):
        progress.warn(problem)
