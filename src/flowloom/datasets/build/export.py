"""Export FLOW's JSONL to the formats of other trainers: Kohya's folders and TOML, webdataset, parquet."""

from __future__ import annotations

import importlib
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from flowloom.data.row_checks import REFERENCES
from flowloom.datasets.build.items import Unusable
from flowloom.datasets.build.rows import FetchedRow, Fetcher, FlowRow, flow_rows, image_folder
from flowloom.errors import DataError
from flowloom.storage.base import StorageSection

Target = Literal["kohya", "kohya-toml", "webdataset", "parquet"]
_WRITERS: dict[str, str] = {
    "kohya": "kohya",
    "kohya-toml": "kohya_toml",
    "webdataset": "webdataset",
    "parquet": "parquet",
}
"""The module in writers/ for each format."""


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Options of an export."""

    images_dir: Path | None = None
    """Folder that file names are relative to; None: as recorded by the build, or the JSONL's own."""
    link: Literal["copy", "hard", "soft"] = "copy"
    """Kohya's folders: copy or link images."""
    name: str = ""
    """Name of Kohya's folder for images in no folder, or of the shards. Empty: that of the JSONL."""
    shard_mib: int = 1024
    """Webdataset: maximum size of a shard."""
    with_images: bool = True
    """Parquet: include the images, not only their names."""
    storage: StorageSection = field(default_factory=StorageSection)
    """Access to stores."""


@dataclass
class ExportReport:
    """The result of an export."""

    output: Path
    num_rows: int = 0
    """Rows that were written, including repeats."""
    files: list[Path] = field(default_factory=list)
    unusable: list[Unusable] = field(default_factory=list)
    remarks: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0


@dataclass
class Export:
    """A running export, for the writers."""

    jsonl: Path
    output: Path
    options: ExportOptions
    fetcher: Fetcher
    report: ExportReport
    on_progress: Callable[[ExportReport], None]

    @property
    def name(self) -> str:
        """The name for folders and shards."""
        return self.options.name or self.jsonl.stem

    def rows(self) -> Iterator[FlowRow]:
        """The usable rows; `fetched` reports the others."""
        return (row for row in flow_rows(self.jsonl) if isinstance(row, FlowRow))

    def fetched(self) -> Iterator[FetchedRow]:
        """The rows with their images; counts usable rows and reports the others."""
        for row in self.fetcher.fetch_all(flow_rows(self.jsonl)):
            if isinstance(row, Unusable):
                self.report.unusable.append(row)
                continue
            self.report.num_rows += 1
            self.on_progress(self.report)
            if row.row.fields.get(REFERENCES):
                self.report.remarks["references are lost: this format cannot contain them"] += 1
            yield row

    def refuse(self, row: FlowRow, reason: str) -> None:
        """Report a row that was fetched but could not be written."""
        self.report.num_rows -= 1
        self.report.unusable.append(Unusable(row.where, f"{row.filename}: {reason}"))

    def empty_output_dir(self) -> Path:
        """The folder to write to.

        Raises:
            DataError: it is not empty.
        """
        if self.output.exists() and (not self.output.is_dir() or any(self.output.iterdir())):
            raise DataError(f"{self.output} is not an empty folder: choose another one.")
        self.output.mkdir(parents=True, exist_ok=True)
        return self.output


def export(
    jsonl: Path,
    target: Target,
    output: Path,
    options: ExportOptions,
    on_progress: Callable[[ExportReport], None],
) -> ExportReport:
    """Write the rows of `jsonl` in the format `target` to `output`; the originals are only read.

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
            f" The first: {report.unusable[0].where}: {report.unusable[0].reason}." if report.unusable else ""
        )
        raise DataError(f"{jsonl}: no row could be written.{first}")
    return report
