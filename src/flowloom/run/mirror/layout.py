"""The objects of a mirrored run, below `s3://bucket/runs/NAME`.

    run.json                              as in the run directory
    events/00000000.jsonl                 events.jsonl, cut into segments of `SEGMENT_BYTES`
    samples/, data/                       as in the run directory
    checkpoints/step_00000100/            the files of a checkpoint
    checkpoints/step_00000100.json        their sizes and checksums, written last
    lease.json                            the machine that trains the run

A checkpoint without its list of files is incomplete and is never used.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import cast

from flowloom.config.run import RunConfig
from flowloom.errors import DamagedError, SourceError
from flowloom.files import read_json, write_json
from flowloom.json_types import is_object
from flowloom.run.directory import RunDir, checkpoint_name
from flowloom.storage.base import StorageSection, shown
from flowloom.storage.objects import Objects
from flowloom.storage.open import open_source

EVENTS, CHECKPOINTS, LEASE, RUN_JSON = "events", "checkpoints", "lease.json", "run.json"
FOLDERS = ("samples", "data")
"""Folders of the run directory that are copied file by file."""
SEGMENT_BYTES = 2**18
"""A store cannot append to an object, so the last segment is written again as events are added."""
_BLOCK = 2**22


@dataclass(frozen=True)
class StoredFile:
    """A file of a mirrored checkpoint."""

    size: int
    sha256: str
    modified_ns: int
    """Its time on the disk, which a download restores: an equal size and time mean the same file."""


Manifest = Mapping[str, StoredFile]
"""The files of a checkpoint, by path below its folder."""


@dataclass(frozen=True)
class Place:
    """Where a run is mirrored, in `mirror.json` of its run directory."""

    url: str
    """Of the run, below `mirror.url`."""
    owner: str
    """A random name of this run directory: two directories of one run must not write to one mirror."""


def place_of(run_dir: RunDir, config: RunConfig) -> Place:
    """The mirror of a run directory; it is chosen once, and again if `mirror.url` changes."""
    base = (config.mirror.url or "").rstrip("/")
    path = run_dir.path / "mirror.json"
    known = _read_place(path)
    if known and known.url.rpartition("/")[0] == base:
        return known
    return keep_place(run_dir, f"{base}/{run_dir.path.absolute().name}")


def keep_place(run_dir: RunDir, url: str) -> Place:
    """Write the mirror of a run directory, with a new owner."""
    place = Place(url.rstrip("/"), secrets.token_hex(8))
    write_json(run_dir.path / "mirror.json", asdict(place))
    return place


def _read_place(path: Path) -> Place | None:
    try:
        content = read_json(path)
        return Place(content["url"], content["owner"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise DamagedError(f"{path}: {error}. Delete it to mirror this run to a new place.") from error


def open_mirror(url: str, storage: StorageSection, *, patience_minutes: float = 0.0) -> Objects:
    """The store of a mirrored run, which reports errors soon, because the caller repeats its work.

    Raises:
        SourceError: it is no bucket, or its keys are missing.
    """
    limits = {"patience_minutes": patience_minutes, "tries": 2}
    store = open_source(url, storage.model_copy(update=limits))
    if not isinstance(store, Objects):
        raise SourceError(f"{shown(url)}: a mirror is in a bucket: write s3://, gs:// or az://.")
    return store


def segment_name(number: int) -> str:
    """The object of a segment of the events."""
    return f"{EVENTS}/{number:08d}.jsonl"


def manifest_name(step: int) -> str:
    """The object that lists the files of a checkpoint."""
    return f"{CHECKPOINTS}/{checkpoint_name(step)}.json"


def manifest_bytes(files: Manifest) -> bytes:
    """The content of that object."""
    return json.dumps({"files": {name: asdict(file) for name, file in files.items()}}, indent=1).encode()


def read_manifest(store: Objects, step: int) -> Manifest:
    """The files of a checkpoint.

    Raises:
        NotFound: it is not complete.
        DamagedError: the list is damaged, or has a path that leads out of the folder.
    """
    name = manifest_name(step)
    try:
        content = json.loads(store.read(name))
        files = {path: StoredFile(**fields) for path, fields in content["files"].items()}
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise DamagedError(f"{store.root}/{name}: damaged ({error}).") from error
    for path in files:
        if not is_inside(path):
            raise DamagedError(f"{store.root}/{name}: {path!r} leads out of the checkpoint.")
    return files


def is_inside(path: str) -> bool:
    """True if `path`, from a bucket, names a file below the folder that it is relative to."""
    parts = PurePosixPath(path).parts
    return bool(parts) and ".." not in parts and not path.startswith("/") and "\\" not in path


def unchecked(path: Path) -> StoredFile:
    """Size and time of a file on the disk, without its checksum."""
    status = path.stat()
    return StoredFile(status.st_size, "", status.st_mtime_ns)


def is_copy_of(folder: Path, files: Manifest) -> bool:
    """True if `folder` has exactly `files`, by size and time."""
    found = {path.relative_to(folder).as_posix(): unchecked(path) for path in files_in(folder)}
    return found == {name: replace(file, sha256="") for name, file in files.items()}


def files_in(folder: Path) -> list[Path]:
    """All files below `folder` that are not being written, in order."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and not any(part.endswith(".tmp") for part in path.relative_to(folder).parts)
    )


def verified(path: Path, file: StoredFile) -> bool:
    """True if the file at `path` has the size and checksum of `file`; sets its time then."""
    if not path.is_file() or path.stat().st_size != file.size:
        return False
    digest = hashlib.sha256()
    with path.open("rb") as content:
        while block := content.read(_BLOCK):
            digest.update(block)
    if digest.hexdigest() != file.sha256:
        return False
    os.utime(path, ns=(file.modified_ns, file.modified_ns))
    return True


def mirrored_steps(names: list[str]) -> list[int]:
    """The steps of complete checkpoints among the objects `names`, in order."""
    found = (PurePosixPath(name) for name in names)
    stems = [path.stem for path in found if str(path.parent) == CHECKPOINTS and path.suffix == ".json"]
    return sorted(int(stem.removeprefix("step_")) for stem in stems if stem.removeprefix("step_").isdigit())


def parsed_object(content: bytes, where: str) -> dict[str, object]:
    """The JSON object in `content`.

    Raises:
        DamagedError: it is something else.
    """
    try:
        found = json.loads(content)
    except ValueError:
        found = None
    if not is_object(found):
        raise DamagedError(f"{where}: not a JSON object.")
    return cast("dict[str, object]", found)
