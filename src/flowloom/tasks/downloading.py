"""Downloads at work: in the run's own process (tasks/download.py is their form)."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flowloom.errors import RunError
from flowloom.model_library.hashes import known_hashes, mark_of, recorded
from flowloom.model_library.scan import SAFE, look
from flowloom.storage.downloads.fetch import (
    Stopped,
    Watch,
    already_there,
    check_room,
    facts_of,
    fetch,
    unfinished_size,
)
from flowloom.storage.downloads.request import HUB, Asker, Facts
from flowloom.storage.ssrf import Allowed
from flowloom.tasks.base import Progress
from flowloom.tasks.download import DownloadConfig, Item


@dataclass
class _Plan:
    """One file to bring."""

    item: Item
    url: str
    target: Path
    done: str | None
    """Its SHA-256, where an earlier sitting brought it."""
    facts: Facts

    @property
    def size(self) -> int | None:
        """Bytes in all, as far as is told."""
        return self.target.stat().st_size if self.done else self.facts.size


def work(config: DownloadConfig, progress: Progress) -> None:
    """Work of the task `download`; its result names every file with its size and SHA-256."""
    folder = Path(config.target_dir).expanduser().absolute()
    folder.mkdir(parents=True, exist_ok=True)
    asker = Asker(
        Allowed.from_environment(), os.environ.get("HF_ENDPOINT") or HUB, os.environ.get("HF_TOKEN")
    )
    before, total = 0, None

    def on_bytes(done: int, _size: int | None) -> None:
        progress.step(before + done, total)

    watch = Watch(on_bytes, progress.is_stopped, progress.phase)
    files: list[dict[str, Any]] = []
    try:
        plans = _plans(config, folder, asker, watch, progress.run_dir.path / "result.json")
        sizes = [plan.size for plan in plans]
        total = None if None in sizes else sum(size or 0 for size in sizes)
        for plan in plans:
            found = plan.done or _bring(plan, asker, watch, config.overwrite)
            files.append(recorded(plan.target, found))
            before += plan.target.stat().st_size
            progress.save_result({"files": files})
            _tell_damage(plan.target, progress)
    except Stopped:
        return
    progress.step(before, before)


def _plans(
    config: DownloadConfig, folder: Path, asker: Asker, watch: Watch, result_json: Path
) -> list[_Plan]:
    """Every file, with what its server tells of it: what cannot be had is known before the first one comes.

    Raises:
        DiskFullError: there is no room for all of them.
    """
    earlier, plans = known_hashes(result_json), list[_Plan]()
    for item in config.items:
        url = asker.hub_url(item.repo, item.name, item.revision) if item.repo else asker.file_url(item.url)
        target = _target(folder, item)
        done = earlier.get(mark_of(target))
        facts = Facts() if done else facts_of(asker, url, watch)
        facts = replace(facts, sha256=item.sha256.lower() or facts.sha256)
        plans.append(_Plan(item, url, target, done, facts))
    coming = [plan for plan in plans if plan.done is None and not plan.target.exists()]
    check_room(folder, sum(max(0, (plan.size or 0) - unfinished_size(plan.target)) for plan in coming))
    return plans


def _target(folder: Path, item: Item) -> Path:
    target = folder / item.saved_as
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.parent.resolve().is_relative_to(folder.resolve()) or target.is_symlink():
        raise RunError(f"{target}: a link leads out of {folder}. Choose another save_as.")
    return target


def _bring(plan: _Plan, asker: Asker, watch: Watch, overwrite: bool) -> str:
    """Bring one file, unless it is here; its SHA-256."""
    if plan.target.exists():
        same = already_there(plan.facts, plan.target, watch)
        if same:
            return same
        if not overwrite:
            raise RunError(
                f"{plan.target}: there is another file of that name. Give this one save_as, or say overwrite."
            )
    watch.on_phase("downloading")
    return fetch(asker, plan.url, plan.target, watch, plan.item.sha256.lower() or None).sha256


def _tell_damage(target: Path, progress: Progress) -> None:
    if target.suffix in SAFE and (problem := look(target).problem):
        progress.warn(problem)
