"""FLOW's JSONL read back for writers: checked rows with the pictures they mean, fetched ahead."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from flowloom.data.row_checks import Unusable as BadRowError
from flowloom.data.row_checks import check_row
from flowloom.datasets.build.items import Unusable, reason_of
from flowloom.datasets.build.readers.table import filename_of, records
from flowloom.datasets.build.state import recorded_root
from flowloom.datasets.build.stores import NamedStores
from flowloom.errors import DataError, SourceError, StoreDenied, Unavailable
from flowloom.storage.base import StorageSection
from flowloom.storage.local import find_image

THREADS = 16
AHEAD = 64
"""Pictures found or fetched before they are asked for."""


@dataclass(frozen=True, slots=True)
class FlowRow:
    """One line."""

    place: str
    fields: dict[str, Any]
    """All of its fields; those of FLOW are checked."""

    @property
    def filename(self) -> str:
        """Path below the folder, or URL."""
        return self.fields["filename"]

    @property
    def captions(self) -> tuple[str, ...]:
        """Prose or tags, one or several in turn."""
        value = self.fields["caption_or_tags"]
        return tuple(value) if isinstance(value, list) else (value,)

    @property
    def is_tag_based(self) -> bool:
        """Whether the caption is tags."""
        return bool(self.fields.get("is_tag_based"))

    @property
    def is_url_based(self) -> bool:
        """Whether the name is a URL."""
        return bool(self.fields.get("is_url_based"))

    @property
    def loss_weight(self) -> float:
        """1 where none is recorded."""
        weight = self.fields.get("loss_weight")
        return 1.0 if weight is None else float(weight)


@dataclass(frozen=True, slots=True)
class Fetched:
    """A row and its picture."""

    row: FlowRow
    picture: Path | bytes
    """A file of this machine, or the bytes that came from an address."""
    suffix: str
    """Of the picture that was found, which may be another than the row's: `.jxl` for `a.png`."""

    def read(self) -> bytes:
        """The picture's bytes."""
        return self.picture if isinstance(self.picture, bytes) else self.picture.read_bytes()


OrUnusable: TypeAlias = "FlowRow | Unusable"


def flow_rows(path: Path) -> Iterator[FlowRow | Unusable]:
    """The lines of the JSONL at `path`.

    Raises:
        DataError: it cannot be read at all.
    """
    if path.is_dir() or not path.exists():
        raise DataError(
            f"{path}: there is no such file. Name a JSONL, as 'flowloom dataset build' writes it."
        )
    for record in records(path, "utf-8"):
        if isinstance(record, Unusable):
            yield record
            continue
        place, fields = record
        try:
            filename_of(fields, "filename")
            fields["width"], fields["height"], *_ = check_row(fields)
        except (DataError, BadRowError) as error:
            yield Unusable(place, str(error))
            continue
        yield FlowRow(place, fields)


def image_folder(jsonl: Path, named: Path | None) -> Path:
    """The folder that names in `jsonl` are relative to: as `named`, as its build recorded, or its own."""
    return (named or recorded_root(jsonl) or jsonl.parent).resolve()


class Fetcher:
    """Finds or fetches the pictures of rows, several at a time, in order."""

    def __init__(self, folder: Path, storage: StorageSection | None = None):
        self.folder = folder
        self._stores = NamedStores(storage)

    def fetch_all(self, rows: Iterator[FlowRow | Unusable]) -> Iterator[Fetched | Unusable]:
        """Each row with its picture, or why it has none."""
        waiting: deque[Future[Fetched | Unusable]] = deque()
        with ThreadPoolExecutor(THREADS, thread_name_prefix="dataset fetch") as pool:
            for row in rows:
                waiting.append(pool.submit(self._fetch, row))
                if len(waiting) > AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def _fetch(self, row: FlowRow | Unusable) -> Fetched | Unusable:
        if isinstance(row, Unusable):
            return row
        try:
            if row.is_url_based:
                return Fetched(
                    row, self._stores.read(row.filename), Path(row.filename.partition("?")[0]).suffix
                )
            path = find_image(self.folder, row.filename)
            return Fetched(row, path, path.suffix)
        except (Unavailable, StoreDenied):
            raise  # the store as a whole: no row is to blame
        except (DataError, SourceError) as error:
            return Unusable(row.place, f"{row.filename}: {error}")
        except OSError as error:
            return Unusable(row.place, f"{row.filename}: {reason_of(error)}")
