"""Write webdataset shards: `000000042.png`, `.txt` with the caption, `.json` with the row."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import orjson

from flowloom.datasets.build.export import Export
from flowloom.datasets.build.items import reason_of
from flowloom.datasets.build.rows import FetchedRow


def write(export: Export) -> None:
    """Write shards of about `shard_mib`; equal rows give equal bytes."""
    folder = export.empty_output_dir()
    shard: _Shard | None = None
    for number, fetched in enumerate(export.fetched()):
        try:
            image = fetched.read()
        except OSError as error:
            export.refuse(fetched.row, reason_of(error))
            continue
        if shard is None:
            shard = _Shard(folder / f"{export.name}-{len(export.report.files):06d}.tar")
        shard.add(f"{number:09d}", fetched, image)
        if shard.size >= export.options.shard_mib * 2**20:
            export.report.files.append(shard.finish())
            shard = None
    if shard:
        export.report.files.append(shard.finish())


class _Shard:
    """A tar that gets its name when it is complete."""

    def __init__(self, path: Path):
        self.path = path
        self.size = 0
        self._partial = path.with_name(f"{path.name}.tmp")
        self._tar = tarfile.open(self._partial, "w")  # noqa: SIM115 -- finish closes it

    def add(self, key: str, fetched: FetchedRow, image: bytes) -> None:
        """Add a sample."""
        row = fetched.row
        self._add(f"{key}{fetched.suffix.lower()}", image)
        self._add(f"{key}.txt", "\n".join(row.captions).encode())
        self._add(f"{key}.json", orjson.dumps(row.fields))

    def _add(self, name: str, data: bytes) -> None:
        member = tarfile.TarInfo(name)
        member.size = len(data)
        self._tar.addfile(member, io.BytesIO(data))
        self._tar.members = []  # pyright: ignore[reportAttributeAccessIssue] -- or it keeps every header
        self.size += len(data) + 512

    def finish(self) -> Path:
        """Close the tar and return its path."""
        self._tar.close()
        self._partial.replace(self.path)
        return self.path
