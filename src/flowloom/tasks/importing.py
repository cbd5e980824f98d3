"""A data set on its way: in the run's own process (tasks/import_dataset.py is its form).

Everything lies in `incoming/` of the run until it is whole: `files/` as it was downloaded, `set/` as it is
going to be. Then `set/` is given its name; a run that was killed goes on wherever that was.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from flowloom.datasets.archives.names import TEXTS, Unfit, fit, place_for
from flowloom.datasets.archives.unpack import Refused, Unpacked, Unpacking, unpack
from flowloom.datasets.build.detect import detect
from flowloom.datasets.build.items import PICTURES
from flowloom.datasets.build.options import BuildOptions
from flowloom.datasets.build.pairs import split_suffix
from flowloom.datasets.build.readers.table import TABLES
from flowloom.datasets.build.tars import is_tar
from flowloom.errors import DataError, RunError
from flowloom.run.directory import RunDir, write_json
from flowloom.storage.downloads.fetch import Stopped, Watch, check_room, fetch, unfinished_size
from flowloom.storage.downloads.hub import HubFile, commit_of, files_of
from flowloom.storage.downloads.request import HUB, Asker
from flowloom.storage.ssrf import Allowed
from flowloom.tasks.base import Progress
from flowloom.tasks.dataset_work import BuildStopped, build_told
from flowloom.tasks.import_dataset import ImportConfig, table_of

ARCHIVES = frozenset((".zip", ".tar", ".gz", ".tgz", ".bz2", ".tbz2", ".xz", ".txz"))
MEMORY_BYTES = 4 * 2**30
"""For the names in an archive."""
LISTED = 200
PLACING = "placing.json"
"""Device and inode of the folder that the run gives the data set's name: it keeps them when it is renamed."""
_TABLES = frozenset(("table", "parquet", "huggingface"))
"""Forms whose captions are in no file beside the picture."""


@dataclass(frozen=True)
class _File:
    """One file to bring."""

    name: str
    url: str
    size: int | None
    sha256: str | None


def work(config: ImportConfig, progress: Progress) -> None:
    """Work of the task `dataset-import`; its result counts files and pictures, and names what was left out.

    Raises:
        RunError: it holds no picture and no table, or the name is taken by now; no data set was made.
        SourceError, DiskFullError: it cannot be had, or has no room.
    """
    target = Path(config.target_dir).expanduser().absolute()
    incoming = progress.run_dir.path / "incoming"
    try:
        if not _is_placed(progress.run_dir, target):
            files = _bring(config, incoming, progress)
            found = _arrange(files, incoming, config.encoding, progress)
            progress.save_result(found | {"target_dir": str(target)})
            _place(incoming / "set", target, progress.run_dir)
        shutil.rmtree(incoming, ignore_errors=True)
        result = json.loads((progress.run_dir.path / "result.json").read_bytes())
        if source := _table_in(target):
            progress.phase("reading")
            options = BuildOptions(extract_dir=target / "pictures")
            result["table"] = build_told(str(source), table_of(target), options, progress)
        progress.save_result(result)
    except (Stopped, BuildStopped):
        return


def _is_placed(run_dir: RunDir, target: Path) -> bool:
    """Whether the folder at `target` is the one that this run gave its name, and nobody else's."""
    try:
        return json.loads((run_dir.path / PLACING).read_bytes()) == _identity(target)
    except FileNotFoundError:
        return False


def _identity(folder: Path) -> list[int]:
    found = folder.stat()
    return [found.st_dev, found.st_ino]


def _bring(config: ImportConfig, incoming: Path, progress: Progress) -> list[Path]:
    """The files, each whole.

    Raises:
        Stopped: it was asked to stop.
    """
    asker = Asker(
        Allowed.from_environment(), os.environ.get("HF_ENDPOINT") or HUB, os.environ.get("HF_TOKEN")
    )
    wanted = _wanted(config, asker, incoming)
    folder = incoming / "files"
    sizes = [file.size for file in wanted]
    total = None if None in sizes else sum(size or 0 for size in sizes)
    here = sum(_size_here(folder / file.name) for file in wanted)
    check_room(folder, max(0, (total or 0) - here))
    before = 0

    def on_bytes(done: int, size: int | None) -> None:
        progress.step(before + done, size if len(wanted) == 1 else total)

    watch = Watch(on_bytes, progress.is_stopped, warn=progress.warn)
    progress.phase("downloading")
    for file in wanted:
        path = folder / file.name
        if not path.exists():  # it gets its name when it is whole
            fetch(asker, file.url, path, watch, file.sha256)
        before += path.stat().st_size
    return [folder / file.name for file in wanted]


def _wanted(config: ImportConfig, asker: Asker, incoming: Path) -> list[_File]:
    """What is to be brought: found out once, so that a later sitting brings the rest of the same."""
    note = incoming / "files.json"
    (incoming / "files").mkdir(parents=True, exist_ok=True)
    if not note.exists():
        found = [_of_url(config, asker)] if config.url else list(_of_repo(config, asker))
        write_json(note, [asdict(file) for file in found])
    return [_File(**told) for told in json.loads(note.read_bytes())]


def _of_url(config: ImportConfig, asker: Asker) -> _File:
    name = PurePosixPath(unquote(urlsplit(config.url).path)).name
    try:
        name = fit(f"{name}.txt").removesuffix(".txt")
    except Unfit:
        name = "data"
    return _File(name, asker.file_url(config.url), None, config.sha256.lower() or None)


def _of_repo(config: ImportConfig, asker: Asker) -> Iterator[_File]:
    commit = commit_of(asker, "datasets", config.repo, config.revision)
    below = f"{config.below.strip('/')}/" if config.below else ""
    wanted = [
        file
        for file in files_of(asker, "datasets", config.repo, commit)
        if file.name.startswith(below) and _is_wanted(file)
    ]
    if not wanted:
        place = f"{config.repo}/{below}" if below else config.repo
        raise RunError(f"{place}: holds no picture, table or archive. See its page for where they are.")
    for file in wanted:
        url = asker.hub_url(f"datasets/{config.repo}", file.name, commit)
        yield _File(file.name.removeprefix(below), url, file.size, file.sha256)


def _is_wanted(file: HubFile) -> bool:
    suffix = split_suffix(file.name)[1]
    try:
        is_ours = suffix in PICTURES | TEXTS | ARCHIVES and not file.name.endswith(".part.json")
        return is_ours and bool(fit(f"{file.name}.txt"))
    except Unfit:
        return False


def _size_here(path: Path) -> int:
    return path.stat().st_size if path.exists() else unfinished_size(path)


def _arrange(files: list[Path], incoming: Path, encoding: str, progress: Progress) -> dict[str, Any]:
    """Make `set/` of what came, from the beginning: archives unpacked, all else as it is."""
    made = incoming / "set"
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir()
    progress.phase("unpacking")
    total = Unpacked()
    for path in files:
        name = path.relative_to(incoming / "files").as_posix()
        if _is_archive(path):
            what = Unpacking(path, incoming / "unpacked", made, replaces=False, encoding=encoding)
            _add(total, _unpack(what, name, progress))
        else:
            _take(path, name, made, total)
    if not total.num_pictures and not _table_in(made):
        left = "; ".join(f"{name}: {reason}" for name, reason in total.left_out[:3])
        raise RunError(f"There is no picture in it, and not one table that tells of some. {left}".strip())
    return {
        "num_files": total.num_files,
        "num_pictures": total.num_pictures,
        "num_left_out": total.num_left_out,
        "reasons": total.reasons,
        "left_out": [{"name": name, "reason": reason} for name, reason in total.left_out[:LISTED]],
    }


def _table_in(folder: Path) -> Path | None:
    """What tells the captions, where they do not lie beside pictures."""
    try:
        detected = detect(str(folder), BuildOptions())
    except DataError:  # several tables: which one is meant is chosen when a JSONL is built
        return None
    if detected.kind in _TABLES and not detected.choices:
        return Path(detected.source)
    files = [path for path in folder.rglob("*") if path.is_file()]
    if any(split_suffix(path.name)[1] in PICTURES for path in files):
        return None
    tables = [path for path in files if split_suffix(path.name)[1] in (*TABLES, ".parquet")]
    return tables[0] if len(tables) == 1 else None


def _is_archive(path: Path) -> bool:
    suffix = split_suffix(path.name)[1]
    if suffix in PICTURES | TEXTS:
        return False
    # Addresses often name no kind.
    return zipfile.is_zipfile(path) or is_tar(path)


def _unpack(what: Unpacking, name: str, progress: Progress) -> Unpacked:
    def on_progress(done: Unpacked) -> None:
        progress.step(done.num_done, done.num_entries or None)
        if progress.is_stopped():
            raise Stopped

    try:
        with _bounded_memory():
            return unpack(what, on_progress)
    except Refused as error:
        raise RunError(f"{name}: {error}.") from None


@contextmanager
def _bounded_memory() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(MEMORY_BYTES, hard)
    with suppress(ValueError, OSError):  # not every system has it
        resource.setrlimit(resource.RLIMIT_AS, (most, hard))
    try:
        yield
    finally:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _add(total: Unpacked, found: Unpacked) -> None:
    total.num_files += found.num_files
    total.num_pictures += found.num_pictures
    total.num_left_out += found.num_left_out
    total.reasons = dict(Counter(total.reasons) + Counter(found.reasons))
    total.left_out += found.left_out


def _take(path: Path, name: str, made: Path, total: Unpacked) -> None:
    """Have a file in the set that stays among the downloads until the set has its name."""
    try:
        if split_suffix(name)[1] == "" and _begins_as_parquet(path):
            name = f"{name}.parquet"
        target = place_for(made, fit(name))
        try:
            os.link(path, target)
        except FileExistsError:
            raise
        except OSError:  # no hard links on this file system
            shutil.copyfile(path, target)
    except (Unfit, FileExistsError, NotADirectoryError) as error:
        reason = str(error) if isinstance(error, Unfit) else "another file of this name is there"
        total.leave_out(name, reason)
        return
    total.num_files += 1
    total.num_pictures += split_suffix(name)[1] in PICTURES


def _begins_as_parquet(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PAR1"


def _place(made: Path, target: Path, run_dir: RunDir) -> None:
    """Give the whole set its name, at once.

    Raises:
        RunError: the name is taken by now, or cannot be given.
    """
    beside = target.with_name(f".{target.name}.{run_dir.path.name}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if os.path.lexists(target):
            raise FileExistsError
        if made.stat().st_dev != target.parent.stat().st_dev:
            check_room(target, sum(path.stat().st_size for path in made.rglob("*") if path.is_file()))
            shutil.rmtree(beside, ignore_errors=True)
            shutil.copytree(made, beside)
            made = beside
        write_json(run_dir.path / PLACING, _identity(made))
        made.rename(target)
    except OSError as error:
        shutil.rmtree(beside, ignore_errors=True)
        if os.path.lexists(target):
            raise RunError(f"{target}: is there by now. Rename it, then resume the run.") from None
        raise RunError(f"{target}: {error.strerror}. Mend that, then resume the run.") from error
