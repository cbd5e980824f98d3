"""FLOW's JSONL to what other trainers read: Kohya's folders and TOML, webdataset, parquet."""

from __future__ import annotations

import importlib
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from flowloom.datasets.build.items import Unusable
from flowloom.datasets.build.rows import Fetched, Fetcher, FlowRow, flow_rows, image_folder
from flowloom.errors import DataError
from flowloom.storage.base import StorageSection

Target = Literal["kohya", "kohya-toml", "webdataset", "parquet"]
_WRITERS: dict[str, str] = {
    "kohya": "kohya",
    "kohya-toml": "kohya_toml",
    "webdataset": "webdataset",
    "parquet": "parquet",
}
"""The module under writers/ for each form."""


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What a user may choose about an export."""

    images_dir: Path | None = None
    """Folder that names in the JSONL are relative to; None: as its build recorded, or its own."""
    link: Literal["copy", "hard", "soft"] = "copy"
    """Kohya's folders: how pictures get there."""
    name: str = ""
    """Kohya's folders: of pictures in no folder; webdataset: of the shards. Empty: as the JSONL."""
    shard_mib: int = 1024
    """Webdataset: a shard ends when it is larger."""
    with_images: bool = True
    """Parquet: the pictures themselves, or their names alone."""
    storage: StorageSection = field(default_factory=StorageSection)
    """How stores are reached."""


@dataclass
class ExportReport:
    """What became of the rows."""

    output: Path
    num_rows: int = 0
    """Rows that were written; equal ones may stand in one place with a number."""
    files: list[Path] = field(default_factory=list)
    unusable: list[Unusable] = field(default_factory=list)
    remarks: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0


@dataclass
class Export:
    """An export under way, as writers see it."""

    jsonl: Path
    output: Path
    options: ExportOptions
    fetcher: Fetcher
    report: ExportReport
    on_progress: Callable[[ExportReport], None]

    @property
    def name(self) -> str:
        """What is named after the data set."""
        return self.options.name or self.jsonl.stem

    def rows(self) -> Iterator[FlowRow]:
        """The good rows; the others are reported once they are fetched."""
        return (row for row in flow_rows(self.jsonl) if isinstance(row, FlowRow))

    def fetched(self) -> Iterator[Fetched]:
        """The rows with their pictures; what cannot be had is reported, each good row counted."""
        for found in self.fetcher.fetch_all(flow_rows(self.jsonl)):
            if isinstance(found, Unusable):
                self.report.unusable.append(found)
                continue
            self.report.num_rows += 1
            self.on_progress(self.report)
            yield found

    def refuse(self, row: FlowRow, reason: str) -> None:
        """Report a row that was counted by `fetched` and could not be written after all."""
        self.report.num_rows -= 1
        self.report.unusable.append(Unusable(row.place, f"{row.filename}: {reason}"))

    def empty_output_dir(self) -> Path:
        """The folder to write to.

        Raises:
            DataError: it has something in it.
        """
        if self.output.exists() and (not self.output.is_dir() or any(self.output.iterdir())):
            raise DataError(f"{self.output} is not an empty folder: name another one.")
        self.output.mkdir(parents=True, exist_ok=True)
        return self.output


def export(
    jsonl: Path,
    target: Target,
    output: Path,
    options: ExportOptions,
    on_progress: Callable[[ExportReport], None],
) -> ExportReport:
    """Write the rows of `jsonl` in the form `target` to `output`; the originals are only read.

    Raises:
        DataError: the JSONL cannot be read, the output is in the way, or no row could be written.
    """
    started = time.perf_counter()
    report = ExportReport(output)
    fetcher = Fetcher(image_folder(jsonl, options.images_dir), options.storage)
    module = importlib.import_module(f"flowloom.datasets.build.writers.{_WRITERS[target]}")
    write: Callable[[Export], None] = module.write
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        write(Export(jsonl, output, options, fetcher, report, on_progress))
    except OSError as error:
        raise DataError(f"{output}: cannot be written: {error}.") from error
    report.seconds = time.perf_counter() - started
    if not report.num_rows:
        first = (
            f" The first: {report.unusable[0].place}: {report.unusable[0].reason}." if report.unusable else ""
        )
        raise DataError(f"{jsonl}: not one row could be written.{first}")
    return report
