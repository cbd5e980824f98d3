"""Import a dataset from a URL or from the Hugging Face hub.

Until it is complete, everything is in `incoming/` of the run: `files/` as downloaded, `set/` as it will be.
Then `set/` is renamed to its target. A run that was killed continues from any of these states.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import zipfile
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import unquote, urlsplit

from pydantic import Field, StringConstraints

from flowloom.datasets.archives.names import TEXTS, UnsafeName, prepare_path, safe_name
from flowloom.datasets.build.detect import detect
from flowloom.datasets.build.options import BuildOptions
from flowloom.datasets.build.pairs import split_suffix
from flowloom.datasets.build.tars import is_tar
from flowloom.errors import DataError, Problem, RunError
from flowloom.files import write_json
from flowloom.image_suffixes import IMAGE_SUFFIXES
from flowloom.run.directory import RunDir
from flowloom.schema import Section
from flowloom.storage.downloads.fetch import Watch, check_room, fetch, unfinished_size
from flowloom.storage.downloads.hub import HubFile, commit_of, files_of
from flowloom.storage.downloads.request import HUB, DownloadClient
from flowloom.storage.ssrf import Allowed
from flowloom.tasks.base import FunctionTask, Progress
from flowloom.tasks.dataset_build import MAX_LISTED, build_jsonl
from flowloom.tasks.download import Repo, Revision, Sha256, Text, is_below, url_trouble

if TYPE_CHECKING:
    from flowloom.datasets.archives.unpack import UnpackReport, UnpackRequest

ARCHIVES = frozenset((".zip", ".tar", ".gz", ".tgz", ".bz2", ".tbz2", ".xz", ".txz"))
MEMORY_BYTES = 4 * 2**30
"""Limit while the names in an archive are read."""
PLACING = "placing.json"
"""Records device and inode of the folder that becomes the dataset; a rename keeps both."""
_TABLES = frozenset(("table", "parquet", "huggingface"))
"""Formats whose captions are not in text files next to the images."""


class ImportConfig(Section):
    """Source and target folder of a dataset."""

    target_dir: Text
    """Folder of the dataset; it must not exist yet. For a table, NAME.jsonl is built next to it."""
    url: Text = ""
    """URL of a zip, tar or table. HF_TOKEN is sent only to the hub."""
    repo: Repo = ""
    """Or a dataset on the Hugging Face hub, OWNER/NAME."""
    revision: Revision = "main"
    """Branch, tag or commit; resolved to a commit when the run starts."""
    below: Text = ""
    """Only files below this folder of the repository. Empty: all files."""
    sha256: Sha256 = ""
    """Expected checksum of the file at `url`. For large files on the hub it is known already."""
    encoding: Annotated[str, StringConstraints(pattern=r"^[\w.-]*$", max_length=40)] = Field(
        "", examples=["cp932"]
    )
    """Encoding of file names in an archive that does not specify it. Empty: UTF-8."""


def _find_problems(config: ImportConfig) -> list[Problem]:
    problems: list[Problem] = []
    target = Path(config.target_dir).expanduser()
    if bool(config.repo) == bool(config.url):
        problems.append(Problem("url", "set url or repo."))
    elif config.url and (trouble := url_trouble(config.url)):
        problems.append(Problem("url", trouble))
    if config.below and not is_below(config.below):
        problems.append(Problem("below", "must stay inside the repository."))
    if RunDir.around(target):
        problems.append(Problem("target_dir", "is inside a run directory: choose another folder."))
    elif target.name.startswith(".") or target.exists() or table_of(target).exists():
        problems.append(
            Problem("target_dir", f"{target} or {table_of(target).name} exists already or is hidden.")
        )
    return problems


def table_of(target: Path) -> Path:
    """The JSONL of a dataset that is a table."""
    return target.with_name(f"{target.name}.jsonl")


@dataclass(frozen=True)
class _File:
    """One file to download."""

    name: str
    url: str
    size: int | None
    sha256: str | None


def _import(config: ImportConfig, progress: Progress) -> None:
    """The result counts files and images, and lists files that were left out.

    Raises:
        RunError: there is no image and no table, or the target exists by now; no dataset was made.
        SourceError, DiskFullError: it cannot be downloaded, or does not fit on the disk.
    """
    target = Path(config.target_dir).expanduser().absolute()
    incoming = progress.run_dir.path / "incoming"
    if not _is_placed(progress.run_dir, target):
        files = _download(config, incoming, progress)
        summary = _arrange(files, incoming, config.encoding, progress)
        progress.save_result(summary | {"target_dir": str(target)})
        _place(incoming / "set", target, progress.run_dir)
    shutil.rmtree(incoming, ignore_errors=True)
    result = json.loads((progress.run_dir.path / "result.json").read_bytes())
    if source := _table_in(target):
        progress.phase("reading")
        options = BuildOptions(extract_dir=target / "pictures")
        result["table"] = build_jsonl(str(source), table_of(target), options, progress).model_dump()
    progress.save_result(result)


def _is_placed(run_dir: RunDir, target: Path) -> bool:
    """True if the folder at `target` is the one that this run put there."""
    try:
        return json.loads((run_dir.path / PLACING).read_bytes()) == _identity(target)
    except FileNotFoundError:
        return False


def _identity(folder: Path) -> list[int]:
    status = folder.stat()
    return [status.st_dev, status.st_ino]


def _download(config: ImportConfig, incoming: Path, progress: Progress) -> list[Path]:
    """Download the files."""
    client = DownloadClient(
        Allowed.from_environment(), os.environ.get("HF_ENDPOINT") or HUB, os.environ.get("HF_TOKEN")
    )
    wanted = _wanted(config, client, incoming)
    folder = incoming / "files"
    sizes = [file.size for file in wanted]
    total = None if None in sizes else sum(size or 0 for size in sizes)
    here = sum(_size_here(folder / file.name) for file in wanted)
    check_room(folder, max(0, (total or 0) - here))
    before = 0

    def on_bytes(done: int, size: int | None) -> None:
        progress.step(before + done, size if len(wanted) == 1 else total)

    watch = Watch(on_bytes, progress.raise_if_stopped, warn=progress.warn)
    progress.phase("downloading")
    for file in wanted:
        path = folder / file.name
        if not path.exists():  # complete files only have this name
            fetch(client, file.url, path, watch, file.sha256)
        before += path.stat().st_size
    return [folder / file.name for file in wanted]


def _wanted(config: ImportConfig, client: DownloadClient, incoming: Path) -> list[_File]:
    """Files to download; recorded, so that a resumed run downloads the rest of the same list."""
    record = incoming / "files.json"
    (incoming / "files").mkdir(parents=True, exist_ok=True)
    if not record.exists():
        files = [_of_url(config, client)] if config.url else list(_of_repo(config, client))
        write_json(record, [asdict(file) for file in files])
    return [_File(**fields) for fields in json.loads(record.read_bytes())]


def _of_url(config: ImportConfig, client: DownloadClient) -> _File:
    name = PurePosixPath(unquote(urlsplit(config.url).path)).name
    try:
        name = safe_name(f"{name}.txt").removesuffix(".txt")
    except UnsafeName:
        name = "data"
    return _File(name, client.file_url(config.url), None, config.sha256.lower() or None)


def _of_repo(config: ImportConfig, client: DownloadClient) -> Iterator[_File]:
    commit = commit_of(client, "datasets", config.repo, config.revision)
    below = f"{config.below.strip('/')}/" if config.below else ""
    wanted = [
        file
        for file in files_of(client, "datasets", config.repo, commit)
        if file.name.startswith(below) and _is_wanted(file)
    ]
    if not wanted:
        place = f"{config.repo}/{below}" if below else config.repo
        raise RunError(f"{place}: has no image, table or archive. Check its page for the right folder.")
    for file in wanted:
        url = client.hub_url(f"datasets/{config.repo}", file.name, commit)
        yield _File(file.name.removeprefix(below), url, file.size, file.sha256)


def _is_wanted(file: HubFile) -> bool:
    suffix = split_suffix(file.name)[1]
    try:
        is_ours = suffix in IMAGE_SUFFIXES | TEXTS | ARCHIVES and not file.name.endswith(".part.json")
        return is_ours and bool(safe_name(f"{file.name}.txt"))
    except UnsafeName:
        return False


def _size_here(path: Path) -> int:
    return path.stat().st_size if path.exists() else unfinished_size(path)


def _arrange(files: list[Path], incoming: Path, encoding: str, progress: Progress) -> dict[str, Any]:
    """Build `set/` from the downloaded files: unpack archives, link everything else."""
    from flowloom.datasets.archives.unpack import UnpackReport, UnpackRequest

    made = incoming / "set"
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir()
    progress.phase("unpacking")
    total = UnpackReport()
    for path in files:
        name = path.relative_to(incoming / "files").as_posix()
        if _is_archive(path):
            what = UnpackRequest(path, incoming / "unpacked", made, replaces=False, encoding=encoding)
            _add(total, _unpack(what, name, progress))
        else:
            _take(path, name, made, total)
    if not total.num_images and not _table_in(made):
        left = "; ".join(f"{name}: {reason}" for name, reason in total.left_out[:3])
        raise RunError(f"It contains no image, and not exactly one table that lists some. {left}".strip())
    return {
        "num_files": total.num_files,
        "num_images": total.num_images,
        "num_left_out": total.num_left_out,
        "reasons": total.reasons,
        "left_out": [{"name": name, "reason": reason} for name, reason in total.left_out[:MAX_LISTED]],
    }


def _table_in(folder: Path) -> Path | None:
    """The table with the captions, if they are not in text files next to the images."""
    from flowloom.datasets.build.readers.table import TABLES

    try:
        detected = detect(str(folder), BuildOptions())
    except DataError:  # several tables: the user chooses one when building a JSONL
        return None
    if detected.kind in _TABLES and not detected.choices:
        return Path(detected.source)
    files = [path for path in folder.rglob("*") if path.is_file()]
    if any(split_suffix(path.name)[1] in IMAGE_SUFFIXES for path in files):
        return None
    tables = [path for path in files if split_suffix(path.name)[1] in (*TABLES, ".parquet")]
    return tables[0] if len(tables) == 1 else None


def _is_archive(path: Path) -> bool:
    suffix = split_suffix(path.name)[1]
    if suffix in IMAGE_SUFFIXES | TEXTS:
        return False
    # URLs often have no suffix.
    return zipfile.is_zipfile(path) or is_tar(path)


def _unpack(what: UnpackRequest, name: str, progress: Progress) -> UnpackReport:
    from flowloom.datasets.archives.unpack import ArchiveRefused, unpack

    def on_progress(done: UnpackReport) -> None:
        progress.step(done.num_done, done.num_entries or None)
        progress.raise_if_stopped()

    try:
        with _bounded_memory():
            return unpack(what, on_progress)
    except ArchiveRefused as error:
        raise RunError(f"{name}: {error}.") from None


@contextmanager
def _bounded_memory() -> Generator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(MEMORY_BYTES, hard)
    with suppress(ValueError, OSError):  # not supported everywhere
        resource.setrlimit(resource.RLIMIT_AS, (most, hard))
    try:
        yield
    finally:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _add(total: UnpackReport, found: UnpackReport) -> None:
    total.num_files += found.num_files
    total.num_images += found.num_images
    total.num_left_out += found.num_left_out
    total.reasons = dict(Counter(total.reasons) + Counter(found.reasons))
    total.left_out += found.left_out


def _take(path: Path, name: str, made: Path, total: UnpackReport) -> None:
    """Link a downloaded file into the dataset."""
    try:
        if split_suffix(name)[1] == "" and _begins_as_parquet(path):
            name = f"{name}.parquet"
        target = prepare_path(made, safe_name(name))
        try:
            os.link(path, target)
        except FileExistsError:
            raise
        except OSError:  # no hard links on this file system
            shutil.copyfile(path, target)
    except (UnsafeName, FileExistsError, NotADirectoryError) as error:
        reason = str(error) if isinstance(error, UnsafeName) else "another file has this name"
        total.leave_out(name, reason)
        return
    total.num_files += 1
    total.num_images += split_suffix(name)[1] in IMAGE_SUFFIXES


def _begins_as_parquet(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PAR1"


def _place(made: Path, target: Path, run_dir: RunDir) -> None:
    """Rename the complete dataset to its target.

    Raises:
        RunError: the target exists by now, or cannot be written.
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
            raise RunError(f"{target}: exists by now. Rename it, then resume the run.") from None
        raise RunError(f"{target}: {error.strerror}. Fix that, then resume the run.") from error


IMPORT = FunctionTask(
    name="dataset-import",
    title="Import a dataset",
    config_type=ImportConfig,
    needs_device=False,
    find_problems=_find_problems,
    body=_import,
)
