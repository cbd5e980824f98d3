"""Read FLOW's JSONL for writers: checked rows, with their images fetched ahead."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowloom.data.row_checks import Unusable as BadRowError
from flowloom.data.row_checks import check_row
from flowloom.datasets.build.items import Unusable, reason_of
from flowloom.datasets.build.readers.table import filename_of, records
from flowloom.datasets.build.state import recorded_root
from flowloom.datasets.build.stores import NamedStores
from flowloom.errors import DataError, SourceError, StoreDenied, Unavailable
from flowloom.json_types import is_array
from flowloom.storage.base import StorageSection
from flowloom.storage.local import find_image

THREADS = 16
AHEAD = 64
"""Images fetched ahead."""


@dataclass(frozen=True, slots=True)
class FlowRow:
    """One row of a JSONL."""

    where: str
    fields: dict[str, Any]
    """All fields; FLOW's are checked."""

    @property
    def filename(self) -> str:
        """A path below the folder, or a URL."""
        return self.fields["filename"]

    @property
    def captions(self) -> tuple[str, ...]:
        """One or several captions, prose or tags."""
        value = self.fields["caption_or_tags"]
        return tuple(value) if is_array(value) else (value,)

    @property
    def is_tag_based(self) -> bool:
        """True if the caption is tags."""
        return bool(self.fields.get("is_tag_based"))

    @property
    def is_url_based(self) -> bool:
        """True if the name is a URL."""
        return bool(self.fields.get("is_url_based"))

    @property
    def loss_weight(self) -> float:
        """The recorded weight, or 1."""
        weight = self.fields.get("loss_weight")
        return 1.0 if weight is None else float(weight)


@dataclass(frozen=True, slots=True)
class FetchedRow:
    """A row and its image."""

    row: FlowRow
    image: Path | bytes
    """A local file, or the bytes from a URL."""
    suffix: str
    """The suffix of the image, which may differ from the row's: `.jxl` for `a.png`."""

    def read(self) -> bytes:
        """The image's bytes."""
        return self.image if isinstance(self.image, bytes) else self.image.read_bytes()


def flow_rows(path: Path) -> Iterator[FlowRow | Unusable]:
    """The lines of the JSONL at `path`.

    Raises:
        DataError: it cannot be read at all.
    """
    if path.is_dir() or not path.exists():
        raise DataError(f"{path}: no such file. Pass a JSONL, as 'flowloom dataset build' writes it.")
    for record in records(path, "utf-8"):
        if isinstance(record, Unusable):
            yield record
            continue
        where, fields = record
        try:
            filename_of(fields, "filename")
            fields["width"], fields["height"], *_ = check_row(fields)
        except (DataError, BadRowError) as error:
            yield Unusable(where, str(error))
            continue
        yield FlowRow(where, fields)


def image_folder(jsonl: Path, named: Path | None) -> Path:
    """The folder that names in `jsonl` are relative to: `named`, as recorded by its build, or its own."""
    return (named or recorded_root(jsonl) or jsonl.parent).resolve()


class Fetcher:
    """Reads or downloads the images of rows, several at a time, in order."""

    def __init__(self, folder: Path, storage: StorageSection | None = None):
        self.folder = folder
        self._stores = NamedStores(storage)

    def fetch_all(self, rows: Iterator[FlowRow | Unusable]) -> Iterator[FetchedRow | Unusable]:
        """Each row with its image, or the reason why it has none."""
        pending: deque[Future[FetchedRow | Unusable]] = deque()
        with ThreadPoolExecutor(THREADS, thread_name_prefix="dataset fetch") as pool:
            for row in rows:
                pending.append(pool.submit(self._fetch, row))
                if len(pending) > AHEAD:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()

    def _fetch(self, row: FlowRow | Unusable) -> FetchedRow | Unusable:
        if isinstance(row, Unusable):
            return row
        try:
            if row.is_url_based:
                return FetchedRow(
                    row, self._stores.read(row.filename), Path(row.filename.partition("?")[0]).suffix
                )
            path = find_image(self.folder, row.filename)
            return FetchedRow(row, path, path.suffix)
        except (Unavailable, StoreDenied):
            raise  # a problem of the store, not of the row
        except (DataError, SourceError) as error:
            return Unusable(row.where, f"{row.filename}: {error}")
        except OSError as error:
            return Unusable(row.where, f"{row.filename}: {reason_of(error)}")
