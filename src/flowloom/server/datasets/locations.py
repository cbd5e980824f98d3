"""The datasets of the studio.

Each is an entry of the root `data` and has its name: a folder of images, a FLOW JSONL, or a file
`NAME.dataset.json` that links to a dataset elsewhere: a folder or JSONL in another root, or a bucket. Deleted
datasets are moved to `data/.trash` and can be restored.
"""

from __future__ import annotations

import re
import secrets
import shutil
import time
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from flowloom.datasets.build.build import Recipe
from flowloom.datasets.build.state import SUFFIX, recorded_root
from flowloom.datasets.build.update import recipe_of
from flowloom.files import read_json, write_json
from flowloom.server.allowed_roots import AllowedRoots
from flowloom.server.problems import Forbidden, NoSuchFile, OutsideRoots, ServiceError
from flowloom.storage.base import StorageSection

Kind = Literal["folder", "jsonl", "bucket"]
LINK = ".dataset.json"
TRASH = ".trash"
MAX_NAME_BYTES = 150
_JSONL_SUFFIXES = ("", SUFFIX, ".index", ".problems")
"""Suffixes of a JSONL and of the files that belong to it."""
_INVALID = re.compile(r"[/\\\x00-\x1f\x7f]")
_TRASH_ID = re.compile(r"\d{8}-\d{6}-[0-9a-f]{8}")
_BUCKET = re.compile(r"(s3|gs|az)://[^/@\s]+(/[^\x00-\x1f]*)?")


class NoSuchDataset(ServiceError):
    status, code, title = 404, "no-such-dataset", "There is no such dataset."

    def __init__(self, name: str):
        super().__init__(f"No dataset is called {name!r}.", "GET /api/datasets lists them.")


class DatasetTaken(ServiceError):
    status, code, title = 409, "dataset-taken", "A dataset of this name exists."


class WrongKind(ServiceError):
    status, code, title = 409, "wrong-kind", "Datasets of this kind do not support this."


class InvalidName(ServiceError):
    status, code, title = 422, "invalid-name", "The name is invalid."


@dataclass(frozen=True)
class Dataset:
    """A dataset and its location."""

    name: str
    kind: Kind
    path: Path | None = None
    """The real path of the folder or JSONL; None for a bucket."""
    url: str = ""
    """URL of a bucket."""
    storage: dict[str, Any] = field(default_factory=dict)
    """Access to the bucket: endpoint, region ...; no keys."""
    is_link: bool = False
    """Stored elsewhere: deleting it removes only the link."""

    @property
    def folder(self) -> Path:
        """The folder of its files.

        Raises:
            WrongKind: it is not a folder.
        """
        if self.kind != "folder" or self.path is None:
            raise WrongKind(f"{self.name!r} is a {self.kind}.", "Use a dataset that is a folder.")
        return self.path

    @property
    def images_dir(self) -> Path | None:
        """The folder that image names are relative to; None for a bucket."""
        if self.kind == "jsonl" and self.path is not None:
            return recorded_root(self.path) or self.path.parent
        return self.path

    @property
    def key(self) -> str:
        """Identity that does not depend on its name."""
        return self.url or str(self.path)


@dataclass(frozen=True)
class Trashed:
    """A dataset that was deleted."""

    id: str
    name: str
    time: float
    """Seconds since 1970."""


class DatasetLocations:
    """The datasets in the root `data`."""

    def __init__(self, roots: AllowedRoots):
        self.roots = roots

    @property
    def home(self) -> Path:
        """The root `data`."""
        return self.roots.folders["data"]

    def all(self) -> list[Dataset]:
        """Every dataset, by name."""
        found: dict[str, Dataset] = {}
        if self.home.is_dir():
            for path in sorted(self.home.iterdir(), key=lambda path: not path.is_dir()):
                if dataset := self._of(path):
                    found.setdefault(dataset.name, dataset)
        return sorted(found.values(), key=lambda dataset: dataset.name.casefold())

    def get(self, name: str) -> Dataset:
        """The dataset called `name`.

        Raises:
            NoSuchDataset: it does not exist, or is outside the roots.
        """
        if not _invalidity(name):
            for path in (self.home / name, self.home / f"{name}{LINK}"):
                dataset = self._of(path)
                if dataset and dataset.name == name:
                    return dataset
        raise NoSuchDataset(name)

    def recipe_of(self, dataset: Dataset) -> Recipe | None:
        """The recipe of a JSONL that was built from a folder in the roots; else None."""
        recipe = recipe_of(dataset.path) if dataset.kind == "jsonl" and dataset.path else None
        if recipe is None:
            return None
        folders = (Path(recipe.source), Path(recipe.options.root or recipe.source))
        return recipe if all(map(self._holds, folders)) else None

    def create(self, name: str) -> Dataset:
        """Create an empty folder.

        Raises:
            DatasetTaken: a dataset has this name.
            InvalidName: the name cannot be used.
        """
        name = self.free_name(name)
        if name.lower().endswith(".jsonl"):
            raise InvalidName(f"{name!r} is the name of a JSONL.", "Choose another name for the folder.")
        self.home.mkdir(parents=True, exist_ok=True)
        try:
            (self.home / name).mkdir()
        except FileExistsError:
            raise DatasetTaken(f"{name!r} exists already.", "Choose another name.") from None
        return self.get(name)

    def link(self, name: str, location: Path | str, storage: dict[str, Any]) -> Dataset:
        """Register a folder or JSONL in a root, or the URL of a bucket, as the dataset `name`.

        Raises:
            DatasetTaken: a dataset has this name.
            InvalidName: the name or URL cannot be used.
            OutsideRoots, NoSuchFile: there is no such path in a root.
            Forbidden: the path overlaps the folder of runs.
        """
        name = self.free_name(name)
        if isinstance(location, Path):
            if not self.roots.contains(location):
                raise OutsideRoots(str(location))
            if self.roots.overlaps_runs(location):
                hint = "Copy its images to a folder of another root."
                raise Forbidden(f"{location} overlaps the folder of runs.", hint)
            if not (location.is_dir() or (location.is_file() and location.suffix.lower() == ".jsonl")):
                raise NoSuchFile(str(location))
            target = {"path": str(location.resolve())}
        elif _BUCKET.fullmatch(location):
            target = {"url": location.rstrip("/")}
        else:
            hint = "Use s3://BUCKET or s3://BUCKET/FOLDER."
            raise InvalidName(f"{location!r} is not the URL of a bucket.", hint)
        self.home.mkdir(parents=True, exist_ok=True)
        write_json(self.home / f"{name}{LINK}", target | {"storage": storage})
        return self.get(name)

    def delete(self, name: str) -> Trashed:
        """Move a dataset to the trash; of one stored elsewhere only the link.

        Raises:
            NoSuchDataset: it does not exist.
        """
        dataset = self.get(name)
        trash_id = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(4)}"
        folder = self.home / TRASH / trash_id
        (folder / "content").mkdir(parents=True)
        suffixes = (LINK,) if dataset.is_link else _JSONL_SUFFIXES if dataset.kind == "jsonl" else ("",)
        write_json(folder / "trash.json", {"name": name, "time": time.time()})
        for path in (self.home / f"{name}{suffix}" for suffix in suffixes):
            if path.is_symlink() or path.exists():
                path.rename(folder / "content" / path.name)
        return Trashed(trash_id, name, time.time())

    def trash(self) -> list[Trashed]:
        """Deleted datasets, newest first."""
        folders = sorted((self.home / TRASH).glob("*/trash.json"), reverse=True)
        return [found for path in folders if (found := _trashed(path))]

    def restore(self, trash_id: str) -> Dataset:
        """Put a deleted dataset back.

        Raises:
            NoSuchDataset: it is not in the trash.
            DatasetTaken: another dataset has its name now.
        """
        folder, trashed = self._in_trash(trash_id)
        self.free_name(trashed.name)
        for path in sorted((folder / "content").iterdir()):
            path.rename(self.home / path.name)
        shutil.rmtree(folder)
        return self.get(trashed.name)

    def destroy(self, trash_id: str) -> None:
        """Delete a dataset in the trash permanently.

        Raises:
            NoSuchDataset: it is not in the trash.
        """
        folder, _ = self._in_trash(trash_id)
        shutil.rmtree(folder)

    def _in_trash(self, trash_id: str) -> tuple[Path, Trashed]:
        folder = self.home / TRASH / trash_id
        trashed = _trashed(folder / "trash.json") if _TRASH_ID.fullmatch(trash_id) else None
        if trashed is None:
            raise NoSuchDataset(trash_id)
        return folder, trashed

    def free_name(self, name: str) -> str:
        """`name`, in Unicode's composed form, if it is free.

        Raises:
            InvalidName: the name cannot be used.
            DatasetTaken: a dataset has this name.
        """
        name = unicodedata.normalize("NFC", name)
        if reason := _invalidity(name):
            raise InvalidName(f"{name!r} {reason}.", "Choose another name.")
        if any((self.home / f"{name}{suffix}").exists() for suffix in ("", LINK)):
            raise DatasetTaken(f"{name!r} exists already.", "Choose another name.")
        return name

    def _of(self, path: Path) -> Dataset | None:
        """The dataset at `path`, or that it links to; None if it is not a dataset, or outside the roots."""
        name = path.name
        if _invalidity(name) or not self._holds(path):
            return None
        if name.endswith(LINK):
            return self._linked(path)
        return _local(name, path.resolve())

    def _holds(self, path: Path) -> bool:
        try:
            return self.roots.contains(path) and not self.roots.overlaps_runs(path)
        except (OSError, RuntimeError, ValueError):  # a circular link, an unknown ~user, an invalid name
            return False

    def _linked(self, path: Path) -> Dataset | None:
        name = path.name.removesuffix(LINK)
        try:
            link = read_json(path)
            target, url, storage = link.get("path"), link.get("url"), link.get("storage", {})
            StorageSection.model_validate(storage)
        except (OSError, ValueError, AttributeError):
            return None
        if not name or _invalidity(name):
            return None
        if isinstance(url, str) and _BUCKET.fullmatch(url):
            return Dataset(name, "bucket", url=url, storage=storage, is_link=True)
        if not isinstance(target, str) or "\0" in target or not self._holds(Path(target)):
            return None
        return _local(name, Path(target).resolve(), is_link=True)


def _local(name: str, path: Path, *, is_link: bool = False) -> Dataset | None:
    if path.is_dir():
        return Dataset(name, "folder", path, is_link=is_link)
    if path.is_file() and path.suffix.lower() == ".jsonl":
        return Dataset(name, "jsonl", path, is_link=is_link)
    return None


def _invalidity(name: str) -> str:
    """The reason why `name` cannot be the name of a dataset; empty if it can."""
    if not name or name != name.strip() or name.startswith("."):
        return "is empty, begins with a dot, or begins or ends with a space"
    if _INVALID.search(name):
        return "contains a slash or control character"
    try:
        length = len(name.encode())
    except UnicodeEncodeError:
        return "is not valid Unicode"
    return f"is longer than {MAX_NAME_BYTES} bytes" if length > MAX_NAME_BYTES else ""


def _trashed(path: Path) -> Trashed | None:
    try:
        record = read_json(path)
        return Trashed(path.parent.name, str(record["name"]), float(record["time"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
