"""Bring the results of a run that trains on other machines into its run directory here, from its mirror."""

from __future__ import annotations

from collections.abc import Callable

from flowloom.files import replacing
from flowloom.run.directory import RunDir
from flowloom.run.mirror.download import newest_checkpoint
from flowloom.run.mirror.layout import EVENTS, is_inside, open_mirror, place_of
from flowloom.storage.local_copy import SILENT
from flowloom.storage.objects import Objects


class Pull:
    """The mirror of a run, whose directory here is only read by others."""

    def __init__(self, run_dir: RunDir):
        """
        Raises:
            SourceError: the mirror cannot be opened.
        """
        config = run_dir.read_config()
        self.run_dir = run_dir
        self.store: Objects = open_mirror(place_of(run_dir, config).url, config.storage)

    def update(self) -> None:
        """Append new events, and download new samples.

        Raises:
            SourceError: the mirror cannot be read.
        """
        self._events()
        for info in self.store.list("samples"):
            path = self.run_dir.path / info.name
            if is_inside(info.name) and not (path.is_file() and path.stat().st_size == info.size):
                path.parent.mkdir(parents=True, exist_ok=True)
                with replacing(path) as file:
                    file.write(self.store.read(info.name))

    def _events(self) -> None:
        # Segments are cut from one file, which only grows: what is here is its beginning.
        path = self.run_dir.events_jsonl
        have, start = path.stat().st_size if path.exists() else 0, 0
        for info in sorted(self.store.list(EVENTS), key=lambda info: info.name):
            if start + info.size > have:
                content = self.store.read(info.name)
                new = content[have - start :]
                whole = new[: new.rfind(b"\n") + 1]
                with path.open("ab") as file:
                    file.write(whole)
                have += len(whole)
            start += info.size

    def finish(self, say: Callable[[str], None]) -> None:
        """Append the last events, and download the newest checkpoint.

        Raises:
            SourceError: the mirror cannot be read.
            DiskFullError: the disk has no room for the checkpoint.
        """
        self.update()
        names = [info.name for info in self.store.list("checkpoints")]
        newest_checkpoint(self.store, self.run_dir, names, say, SILENT)
