"""All data sets with what is kept of each: its list of pictures, and the one editor of its captions."""

from __future__ import annotations

import shutil
import threading
from dataclasses import dataclass, field
from pathlib import Path

from flowloom.server.datasets.edits import Editor
from flowloom.server.datasets.index import Index
from flowloom.server.datasets.places import DataSet, Places
from flowloom.server.datasets.turns import Turns
from flowloom.server.roots import Roots


@dataclass
class _Kept:
    index: Index
    turns: Turns = field(default_factory=Turns)


class DataSets:
    """What routes ask for a data set by its name."""

    def __init__(self, roots: Roots, state_dir: Path):
        self.places = Places(roots)
        self.state_dir = state_dir
        shutil.rmtree(state_dir / "answers", ignore_errors=True)  # of a studio that was killed
        self._kept: dict[tuple[str, str], _Kept] = {}
        self._lock = threading.Lock()

    def get(self, name: str) -> DataSet:
        """The data set called `name`.

        Raises:
            NoSuchDataSet: there is none.
        """
        return self.places.get(name)

    def index(self, dataset: DataSet) -> Index:
        """The list of its pictures."""
        return self._of(dataset).index

    def editor(self, dataset: DataSet) -> Editor:
        """Through which its captions are changed.

        Raises:
            WrongKind: it is a bucket, whose captions are only read.
        """
        kept = self._of(dataset)
        return Editor(kept.index, kept.turns)

    def turns(self, dataset: DataSet) -> Turns:
        """Who changes it takes one of these."""
        return self._of(dataset).turns

    def _of(self, dataset: DataSet) -> _Kept:
        with self._lock:
            key = (dataset.kind, dataset.key)
            if key not in self._kept:
                self._kept[key] = _Kept(Index(dataset, self.state_dir))
            return self._kept[key]
