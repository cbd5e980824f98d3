"""All datasets with what is kept of each: its list of pictures, and the one editor of its captions."""

from __future__ import annotations

import shutil
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from flowloom.datasets.build.update import Freshness, freshness
from flowloom.server.allowed_roots import AllowedRoots
from flowloom.server.datasets.edit_lock import EditLock
from flowloom.server.datasets.edits import Editor
from flowloom.server.datasets.index import Index, stamp_of
from flowloom.server.datasets.locations import Dataset, DatasetLocations

REST, LEAST_REST_S = 20, 5.0
"""A comparison with a folder is made again after a rest of so many times its length."""


@dataclass
class _Kept:
    index: Index
    lock: EditLock = field(default_factory=EditLock)
    compared: _Compared | None = None


@dataclass(frozen=True)
class _Compared:
    """How a JSONL compared with its folder, and what both looked like then."""

    looks: tuple[str, int]
    freshness: Freshness | None
    ended: float
    """By a clock that is never set."""
    length_s: float

    def holds(self, looks: tuple[str, int]) -> bool:
        """Whether it is still to be believed."""
        rest = max(LEAST_REST_S, REST * self.length_s)
        return looks == self.looks and time.monotonic() - self.ended < rest


class DatasetRegistry:
    """What routes ask for a dataset by its name."""

    def __init__(self, roots: AllowedRoots, state_dir: Path):
        self.locations = DatasetLocations(roots)
        self.state_dir = state_dir
        shutil.rmtree(state_dir / "answers", ignore_errors=True)  # of a studio that was killed
        self._kept: dict[tuple[str, str], _Kept] = {}
        self._lock = threading.Lock()

    def get(self, name: str) -> Dataset:
        """The dataset called `name`.

        Raises:
            NoSuchDataset: there is none.
        """
        return self.locations.get(name)

    def index(self, dataset: Dataset) -> Index:
        """The list of its pictures."""
        return self._of(dataset).index

    def editor(self, dataset: Dataset) -> Editor:
        """Through which its captions are changed.

        Raises:
            WrongKind: it is a bucket, whose captions are only read.
        """
        kept = self._of(dataset)
        return Editor(kept.index, kept.lock)

    def edit_lock(self, dataset: Dataset) -> EditLock:
        """Who changes it takes one of these."""
        return self._of(dataset).lock

    def freshness(self, dataset: Dataset) -> Freshness | None:
        """How a JSONL compares with the folder that it was built from; None where there is none."""
        recipe = self.locations.recipe_of(dataset)
        if recipe is None or dataset.path is None:
            return None
        kept, source = self._of(dataset), Path(recipe.source)
        folder = next(
            (one for one in self.locations.all() if one.kind == "folder" and one.path == source), None
        )
        version = 0
        if folder:
            self.index(folder).refresh()
            version = self.index(folder).version
        looks = (stamp_of(dataset.path), version)
        if kept.compared is None or not kept.compared.holds(looks):
            began = time.monotonic()
            found = freshness(dataset.path)
            ended = time.monotonic()
            kept.compared = _Compared(looks, found, ended, ended - began)
        return kept.compared.freshness

    def _of(self, dataset: Dataset) -> _Kept:
        with self._lock:
            key = (dataset.kind, dataset.key)
            if key not in self._kept:
                self._kept[key] = _Kept(Index(dataset, self.state_dir))
            return self._kept[key]
