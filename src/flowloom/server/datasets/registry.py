"""All datasets, each with its index of images and its editor of captions."""

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
"""A comparison with a folder is repeated after REST times its duration, at least LEAST_REST_S."""


@dataclass
class _Kept:
    index: Index
    lock: EditLock = field(default_factory=EditLock)
    compared: _Compared | None = None


@dataclass(frozen=True)
class _Compared:
    """A comparison of a JSONL with its folder, and the state of both at that time."""

    state: tuple[str, int]
    freshness: Freshness | None
    ended: float
    """By the monotonic clock."""
    length_s: float

    def holds(self, state: tuple[str, int]) -> bool:
        """True if the comparison is still current."""
        rest = max(LEAST_REST_S, REST * self.length_s)
        return state == self.state and time.monotonic() - self.ended < rest


class DatasetRegistry:
    """Datasets by name, for the routes."""

    def __init__(self, roots: AllowedRoots, state_dir: Path):
        self.locations = DatasetLocations(roots)
        self.state_dir = state_dir
        shutil.rmtree(state_dir / "answers", ignore_errors=True)  # left by a killed studio
        self._kept: dict[tuple[str, str], _Kept] = {}
        self._lock = threading.Lock()

    def get(self, name: str) -> Dataset:
        """The dataset called `name`.

        Raises:
            NoSuchDataset: there is none.
        """
        return self.locations.get(name)

    def index(self, dataset: Dataset) -> Index:
        """The index of its images."""
        return self._of(dataset).index

    def editor(self, dataset: Dataset) -> Editor:
        """The editor of its captions."""
        kept = self._of(dataset)
        return Editor(kept.index, kept.lock)

    def edit_lock(self, dataset: Dataset) -> EditLock:
        """The lock that every change of the dataset holds."""
        return self._of(dataset).lock

    def freshness(self, dataset: Dataset) -> Freshness | None:
        """The comparison of a JSONL with the folder that it was built from; None without such a folder."""
        recipe = self.locations.recipe_of(dataset)
        if recipe is None or dataset.path is None:
            return None
        kept, source = self._of(dataset), Path(recipe.source)
        others = self.locations.all()
        folder = next((other for other in others if other.kind == "folder" and other.path == source), None)
        version = 0
        if folder:
            self.index(folder).refresh()
            version = self.index(folder).version
        state = (stamp_of(dataset.path), version)
        if kept.compared is None or not kept.compared.holds(state):
            began = time.monotonic()
            found = freshness(dataset.path)
            ended = time.monotonic()
            kept.compared = _Compared(state, found, ended, ended - began)
        return kept.compared.freshness

    def _of(self, dataset: Dataset) -> _Kept:
        with self._lock:
            key = (dataset.kind, dataset.key)
            if key not in self._kept:
                self._kept[key] = _Kept(Index(dataset, self.state_dir))
            return self._kept[key]
