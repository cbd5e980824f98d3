"""Open a source with the reader for its format."""

from __future__ import annotations

from pathlib import Path

from flowloom.datasets.build.detect import detect, existing, table_in, with_remarks
from flowloom.datasets.build.index_pages import IndexPages
from flowloom.datasets.build.items import OpenedSource
from flowloom.datasets.build.options import BuildOptions, Kind
from flowloom.datasets.build.pairs import split_suffix
from flowloom.datasets.build.readers.folder import open_folder
from flowloom.datasets.build.readers.huggingface import open_huggingface
from flowloom.datasets.build.readers.kohya import open_kohya
from flowloom.datasets.build.readers.kohya_toml import open_kohya_toml
from flowloom.datasets.build.readers.listing import open_listing
from flowloom.datasets.build.readers.table import TABLES, open_table
from flowloom.datasets.build.readers.webdataset import open_webdataset
from flowloom.datasets.build.reference_files import with_references
from flowloom.datasets.build.stores import ObjectStore, open_store
from flowloom.errors import DataError


def open_dataset(source: str, options: BuildOptions) -> OpenedSource:
    """The dataset at `source`: a path, a URL, or a pattern of tars.

    Raises:
        DataError: it does not exist or cannot be read.
        AmbiguousSource: the user has to choose its format.
    """
    if options.kind != "auto":
        return with_references(_opened(options.kind, source, options), options.reference_dirs)
    detected = detect(source, options).checked()
    opened = with_remarks(_opened(detected.kind, detected.source, options), detected)
    return with_references(opened, options.reference_dirs)


def _opened(kind: Kind, source: str, options: BuildOptions) -> OpenedSource:
    path = Path(source)
    match kind:
        case "listing":
            return open_listing(source, _listed(source, options), options)
        case "webdataset":
            return open_webdataset(source, options)
        case "kohya-toml":
            return open_kohya_toml(existing(path), options)
        case "table":
            return open_table(table_in(path) if path.is_dir() else existing(path), options)
        case "parquet" | "huggingface":
            return open_huggingface(existing(path), options)
        case "kohya":
            return open_kohya(existing(path), options)
        case _:
            return open_folder(existing(path), options)


def _listed(url: str, options: BuildOptions) -> ObjectStore:
    if not url.startswith(("http://", "https://")):
        return open_store(url, options.storage)
    suffix = split_suffix(url.rpartition("/")[2])[1]
    if suffix in (*TABLES, ".parquet", ".tar", ".toml"):
        raise DataError(f"{url}: download it first, then build from the file.")
    return IndexPages(url, open_store(url, options.storage))
