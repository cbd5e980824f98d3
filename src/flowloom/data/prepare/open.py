"""Which reader a source is for."""

from __future__ import annotations

from pathlib import Path

from flowloom.data.prepare.index_pages import IndexPages
from flowloom.data.prepare.items import Reading, is_archive
from flowloom.data.prepare.options import BuildOptions, Kind
from flowloom.data.prepare.pairs import split_suffix
from flowloom.data.prepare.readers.folder import open_folder
from flowloom.data.prepare.readers.huggingface import is_saved, open_huggingface
from flowloom.data.prepare.readers.kohya import is_kohya, open_kohya
from flowloom.data.prepare.readers.kohya_toml import open_kohya_toml
from flowloom.data.prepare.readers.listing import open_listing
from flowloom.data.prepare.readers.table import REMOTE, TABLES, open_table
from flowloom.data.prepare.readers.webdataset import open_webdataset
from flowloom.data.prepare.stores import Store, open_store
from flowloom.errors import DataError

IMAGEFOLDER = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
"""Hugging Face's `imagefolder`: a folder of pictures with their captions in one of these."""


def open_dataset(source: str, options: BuildOptions) -> Reading:
    """The data set at `source`: a path, an address, or a pattern of tars.

    Raises:
        DataError: there is nothing, or nothing that we can read.
    """
    kind, source = (options.kind, source) if options.kind != "auto" else kind_of(source)
    path = Path(source)
    match kind:
        case "listing":
            return open_listing(source, _listed(source, options), options)
        case "webdataset":
            return open_webdataset(source, options)
        case "kohya-toml":
            return open_kohya_toml(_existing(path), options)
        case "table":
            return open_table(_existing(path), options)
        case "parquet" | "huggingface":
            return open_huggingface(_existing(path), options)
        case "kohya":
            return open_kohya(_existing(path), options)
        case _:
            return open_folder(_existing(path), options)


def kind_of(source: str) -> tuple[Kind, str]:
    """The form of `source`, and the file or folder that has it.

    Raises:
        DataError: there is nothing, or nothing that we can read.
    """
    if source.startswith(REMOTE):
        return "listing", source
    path = Path(source)
    if path.is_dir():
        return _kind_of_folder(path)
    if is_archive(path) or "{" in source or "*" in source:
        return "webdataset", source
    suffix = split_suffix(path.name)[1]
    kinds: dict[str, Kind] = dict.fromkeys(TABLES, "table")
    kinds |= {".toml": "kohya-toml", ".parquet": "parquet", ".arrow": "huggingface"}
    _existing(path)
    if suffix not in kinds:
        known = ", ".join(sorted([*kinds, ".tar"]))
        raise DataError(f"{path}: {suffix or 'no suffix'} is none of {known}. Name its form by --from.")
    return kinds[suffix], source


def _kind_of_folder(folder: Path) -> tuple[Kind, str]:
    if is_saved(folder):
        return "huggingface", str(folder)
    for name in IMAGEFOLDER:
        if (folder / name).is_file():
            return ("parquet" if name.endswith(".parquet") else "table"), str(folder / name)
    if is_kohya(folder):
        return "kohya", str(folder)
    suffixes = {split_suffix(path.name)[1] for path in folder.iterdir() if path.is_file()}
    suffixes |= {split_suffix(path.name)[1] for path in (folder / "data").glob("*.parquet")}
    if ".parquet" in suffixes:
        return "parquet", str(folder)
    if {".tar", ".tgz"} & suffixes:
        return "webdataset", str(folder)
    return "folder", str(folder)


def _listed(url: str, options: BuildOptions) -> Store:
    if not url.startswith(("http://", "https://")):
        return open_store(url, options.storage)
    suffix = split_suffix(url.rpartition("/")[2])[1]
    if suffix in (*TABLES, ".parquet", ".tar", ".toml"):
        raise DataError(f"{url}: download it first, then build from the file.")
    return IndexPages(url, open_store(url.rstrip("/"), options.storage))


def _existing(path: Path) -> Path:
    if not path.exists():
        raise DataError(f"{path}: there is nothing of that name.")
    return path
