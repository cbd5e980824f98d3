"""What datasets there are.

Each is something in the root `data`, and is called as that is: a folder of pictures, a FLOW JSONL, or a file
`NAME.dataset.json` that says where a dataset outside of that root lies: a folder or a JSONL in another root,
or a bucket. What is deleted goes to `data/.trash` and can be had back from there.
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
_BESIDE = ("", SUFFIX, ".index", ".problems")
"""What goes with a JSONL."""
_UNFIT = re.compile(r"[/\\\x00-\x1f\x7f]")
_TRASH_ID = re.compile(r"\d{8}-\d{6}-[0-9a-f]{8}")
_BUCKET = re.compile(r"(s3|gs|az)://[^/@\s]+(/[^\x00-\x1f]*)?")


class NoSuchDataset(ServiceError):
    status, code, title = 404, "no-such-dataset", "There is no such dataset."

    def __init__(self, name: str):
        super().__init__(f"No dataset is called {name!r}.", "GET /api/datasets lists them.")


class DatasetTaken(ServiceError):
    status, code, title = 409, "dataset-taken", "There is a dataset of this name."


class WrongKind(ServiceError):
    status, code, title = 409, "wrong-kind", "A dataset of this kind cannot do that."


class InvalidName(ServiceError):
    status, code, title = 422, "invalid-name", "That name cannot be used."


@dataclass(frozen=True)
class Dataset:
    """One dataset, and where it is."""

    name: str
    kind: Kind
    path: Path | None = None
    """The folder or the JSONL, by its real path; None of a bucket."""
    url: str = ""
    """Of a bucket."""
    storage: dict[str, Any] = field(default_factory=dict)
    """How the bucket is reached: endpoint, region ...; no keys."""
    is_link: bool = False
    """It lies elsewhere: to delete it forgets it, and what it has stays."""

    @property
    def folder(self) -> Path:
        """Where its files are put.

        Raises:
            WrongKind: it is no folder.
        """
        if self.kind != "folder" or self.path is None:
            raise WrongKind(f"{self.name!r} is a {self.kind}.", "Use a dataset that is a folder.")
        return self.path

    @property
    def images_dir(self) -> Path | None:
        """What the names of its pictures are relative to; None of a bucket."""
        if self.kind == "jsonl" and self.path is not None:
            return recorded_root(self.path) or self.path.parent
        return self.path

    @property
    def key(self) -> str:
        """What tells it from all others, by whatever name it goes."""
        return self.url or str(self.path)


@dataclass(frozen=True)
class Trashed:
    """A dataset that was deleted."""

    id: str
    name: str
    time: float
    """When, in seconds since 1970."""


class DatasetLocations:
    """The datasets in the root `data`, whatever put them there."""

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
                known = self._of(path)
                if known:
                    found.setdefault(known.name, known)
        return sorted(found.values(), key=lambda one: one.name.casefold())

    def get(self, name: str) -> Dataset:
        """The dataset called `name`.

        Raises:
            NoSuchDataset: there is none, or it leads out of the roots.
        """
        if not _unfitness(name):
            for path in (self.home / name, self.home / f"{name}{LINK}"):
                known = self._of(path)
                if known and known.name == name:
                    return known
        raise NoSuchDataset(name)

    def recipe_of(self, dataset: Dataset) -> Recipe | None:
        """How a JSONL was built, where that was from a folder in the roots; else None."""
        recipe = recipe_of(dataset.path) if dataset.kind == "jsonl" and dataset.path else None
        if recipe is None:
            return None
        folders = (Path(recipe.source), Path(recipe.options.root or recipe.source))
        return recipe if all(map(self._holds, folders)) else None

    def create(self, name: str) -> Dataset:
        """Make an empty folder.

        Raises:
            DatasetTaken, InvalidName: as their names say.
        """
        name = self.free_name(name)
        if name.lower().endswith(".jsonl"):
            raise InvalidName(f"{name!r} is the name of a JSONL.", "Call the folder otherwise.")
        self.home.mkdir(parents=True, exist_ok=True)
        try:
            (self.home / name).mkdir()
        except FileExistsError:
            raise DatasetTaken(f"{name!r} is there already.", "Choose another name.") from None
        return self.get(name)

    def link(self, name: str, where: Path | str, storage: dict[str, Any]) -> Dataset:
        """Remember a folder or JSONL in a root, or the address of a bucket, as the dataset `name`.

        Raises:
            DatasetTaken, InvalidName: as their names say.
            OutsideRoots, NoSuchFile: the path is not one in a root.
            Forbidden: it is where runs lie.
        """
        name = self.free_name(name)
        if isinstance(where, Path):
            if not self.roots.contains(where):
                raise OutsideRoots(str(where))
            if self.roots.overlaps_runs(where):
                hint = "Copy its pictures to a folder of another root."
                raise Forbidden(f"{where} reaches into the folder of runs.", hint)
            if not (where.is_dir() or (where.is_file() and where.suffix.lower() == ".jsonl")):
                raise NoSuchFile(str(where))
        elif not _BUCKET.fullmatch(where):
            raise InvalidName(
                f"{where!r} is no address of a bucket.", "Write s3://BUCKET or s3://BUCKET/FOLDER."
            )
        told = {"path": str(where.resolve())} if isinstance(where, Path) else {"url": where.rstrip("/")}
        self.home.mkdir(parents=True, exist_ok=True)
        write_json(self.home / f"{name}{LINK}", told | {"storage": storage})
        return self.get(name)

    def delete(self, name: str) -> Trashed:
        """Move a dataset to the trash; of one that lies elsewhere only what tells of it.

        Raises:
            NoSuchDataset: there is none.
        """
        known = self.get(name)
        trash_id = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(4)}"
        folder = self.home / TRASH / trash_id
        (folder / "content").mkdir(parents=True)
        ends = (LINK,) if known.is_link else _BESIDE if known.kind == "jsonl" else ("",)
        write_json(folder / "trash.json", {"name": name, "time": time.time()})
        for path in (self.home / f"{name}{end}" for end in ends):
            if path.is_symlink() or path.exists():
                path.rename(folder / "content" / path.name)
        return Trashed(trash_id, name, time.time())

    def trash(self) -> list[Trashed]:
        """What was deleted, the latest first."""
        folders = sorted((self.home / TRASH).glob("*/trash.json"), reverse=True)
        return [found for path in folders if (found := _trashed(path))]

    def restore(self, trash_id: str) -> Dataset:
        """Put a deleted dataset back.

        Raises:
            NoSuchDataset: it is not in the trash.
            DatasetTaken: another one has its name now.
        """
        folder, known = self._in_trash(trash_id)
        self.free_name(known.name)
        for path in sorted((folder / "content").iterdir()):
            path.rename(self.home / path.name)
        shutil.rmtree(folder)
        return self.get(known.name)

    def destroy(self, trash_id: str) -> None:
        """Remove a deleted dataset for good.

        Raises:
            NoSuchDataset: it is not in the trash.
        """
        folder, _ = self._in_trash(trash_id)
        shutil.rmtree(folder)

    def _in_trash(self, trash_id: str) -> tuple[Path, Trashed]:
        folder = self.home / TRASH / trash_id
        known = _trashed(folder / "trash.json") if _TRASH_ID.fullmatch(trash_id) else None
        if known is None:
            raise NoSuchDataset(trash_id)
        return folder, known

    def free_name(self, name: str) -> str:
        """`name`, where no dataset has it.

        Raises:
            InvalidName, DatasetTaken: as their names say.
        """
        name = unicodedata.normalize("NFC", name)
        if reason := _unfitness(name):
            raise InvalidName(f"{name!r} {reason}.", "Choose another name.")
        if any((self.home / f"{name}{end}").exists() for end in ("", LINK)):
            raise DatasetTaken(f"{name!r} is there already.", "Choose another name.")
        return name

    def _of(self, path: Path) -> Dataset | None:
        """The dataset that `path` in the root is or tells of; None where it is none, or leads out."""
        name = path.name
        if _unfitness(name) or not self._holds(path):
            return None
        if name.endswith(LINK):
            return self._linked(path)
        return _local(name, path.resolve())

    def _holds(self, path: Path) -> bool:
        try:
            return self.roots.contains(path) and not self.roots.overlaps_runs(path)
        except (OSError, RuntimeError, ValueError):  # a link in a circle, ~nobody, a name that is no name
            return False

    def _linked(self, path: Path) -> Dataset | None:
        name = path.name.removesuffix(LINK)
        try:
            told = read_json(path)
            where, url, storage = told.get("path"), told.get("url"), told.get("storage", {})
            StorageSection.model_validate(storage)
        except (OSError, ValueError, AttributeError):
            return None
        if not name or _unfitness(name):
            return None
        if isinstance(url, str) and _BUCKET.fullmatch(url):
            return Dataset(name, "bucket", url=url, storage=storage, is_link=True)
        if not isinstance(where, str) or "\0" in where or not self._holds(Path(where)):
            return None
        return _local(name, Path(where).resolve(), is_link=True)


def _local(name: str, path: Path, *, is_link: bool = False) -> Dataset | None:
    if path.is_dir():
        return Dataset(name, "folder", path, is_link=is_link)
    if path.is_file() and path.suffix.lower() == ".jsonl":
        return Dataset(name, "jsonl", path, is_link=is_link)
    return None


def _unfitness(name: str) -> str:
    """Why `name` cannot be that of a dataset; nothing where it can."""
    if not name or name != name.strip() or name.startswith("."):
        return "is empty, begins with a dot, or has spaces at its ends"
    if _UNFIT.search(name):
        return "has a slash or a control character in it"
    try:
        length = len(name.encode())
    except UnicodeEncodeError:
        return "is not Unicode"
    return f"is longer than {MAX_NAME_BYTES} bytes" if length > MAX_NAME_BYTES else ""


def _trashed(path: Path) -> Trashed | None:
    try:
        told = read_json(path)
        return Trashed(path.parent.name, str(told["name"]), float(told["time"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
