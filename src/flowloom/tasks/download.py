"""Download models from the Hugging Face hub or from a URL."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Annotated, Any
from urllib.parse import parse_qsl, unquote, urlsplit

from pydantic import Field, StringConstraints

from flowloom.errors import Problem, RunError, SourceError
from flowloom.image_suffixes import COMMON_SUFFIXES, JXL_SUFFIX
from flowloom.model_library.hashes import known_hashes, mark_of, recorded
from flowloom.model_library.scan import SAFE, look
from flowloom.run.directory import RunDir
from flowloom.schema import Section
from flowloom.storage.downloads.fetch import (
    Watch,
    already_there,
    check_room,
    facts_of,
    fetch,
    unfinished_size,
)
from flowloom.storage.downloads.request import HUB, DownloadClient, Facts
from flowloom.storage.ssrf import Allowed, host_of
from flowloom.tasks.base import FunctionTask, Progress

MAX_ITEMS = 200
SUFFIXES = frozenset({
    ".safetensors", ".sft", ".gguf", ".onnx", ".onnx_data", ".bin", ".pt", ".pth", ".ckpt", ".npz", ".model",
    ".json", ".jsonl", ".txt", ".csv", ".md", ".yaml", ".yml", ".parquet", ".zip", ".tar",
    *COMMON_SUFFIXES, JXL_SUFFIX, ".gif", ".avif",
})  # fmt: skip
"""Suffixes that may be downloaded: weights, their metadata, and data; no programs."""
_SECRETS = {"token", "api_key", "apikey", "key", "access_token"}

Sha256 = Annotated[str, StringConstraints(pattern=r"^([0-9a-fA-F]{64})?$")]
Repo = Annotated[str, StringConstraints(pattern=r"^([\w-][\w.-]*/[\w-][\w.-]*)?$", max_length=200)]
Revision = Annotated[str, StringConstraints(pattern=r"^[\w./-]+$", max_length=200)]
Text = Annotated[str, StringConstraints(max_length=4096)]


class Item(Section):
    """One file to download: `repo` and `name`, or `url`."""

    repo: Repo = ""
    """Repository on the Hugging Face hub, OWNER/NAME."""
    name: Text = ""
    """File in the repository, such as Chroma1-HD.safetensors."""
    revision: Revision = "main"
    """Branch, tag or commit of the repository."""
    url: Text = ""
    """Or the URL of the file. HF_TOKEN is sent only to the hub."""
    sha256: Sha256 = ""
    """Expected checksum. For large files on the hub it is known already."""
    save_as: Text = ""
    """Path below target_dir. Empty: its own name."""

    @property
    def saved_as(self) -> str:
        """Path below target_dir."""
        own = self.name or unquote(urlsplit(self.url).path)
        return self.save_as or PurePosixPath(own).name


class DownloadConfig(Section):
    """Files to download, and their folder."""

    target_dir: Text
    """Folder of the downloaded files; created if needed."""
    items: Annotated[list[Item], Field(min_length=1, max_length=MAX_ITEMS)]
    """The files."""
    overwrite: bool = False
    """Replace existing files of the same name. Off: an existing file with other content is an error."""


def _find_problems(config: DownloadConfig) -> list[Problem]:
    problems = [
        Problem(f"items.{i}{f'.{key}' if key else ''}", message)
        for i, item in enumerate(config.items)
        for key, message in (_where_from(item), _where_to(item))
        if message
    ]
    names = [item.saved_as for item in config.items]
    if RunDir.around(Path(config.target_dir)):
        problems.append(Problem("target_dir", "is inside a run directory: choose another folder."))
    twice = sorted({name for name in names if names.count(name) > 1})
    return problems + [
        Problem("items", f"{name} is saved twice: set save_as for one of them.") for name in twice
    ]


def _where_from(item: Item) -> tuple[str, str]:
    if bool(item.repo) == bool(item.url) or bool(item.repo) != bool(item.name):
        return "", "set repo and name, or url."
    if not item.url:
        return ("name", "must stay inside the repository.") if not is_below(item.name) else ("", "")
    trouble = url_trouble(item.url)
    return ("url", trouble) if trouble else ("", "")


def url_trouble(url: str) -> str:
    """The reason why `url` is refused; empty if it is accepted."""
    try:
        host_of(url)
    except SourceError as error:
        return str(error)
    if _SECRETS & {key.lower() for key, _ in parse_qsl(urlsplit(url).query)}:
        return "contains a secret, which would be stored in the run. Use a URL without it."
    return ""


def _where_to(item: Item) -> tuple[str, str]:
    name = item.saved_as
    if not is_below(name) or name.endswith((".part", ".part.json")):
        return "save_as", f"{name!r} is not a file name below target_dir."
    if PurePosixPath(name).suffix.lower() not in SUFFIXES:
        return "save_as", f"{name!r} cannot be downloaded. Allowed suffixes: {', '.join(sorted(SUFFIXES))}."
    return "", ""


def is_below(name: str) -> bool:
    """True if a relative name stays below its folder and is not hidden."""
    path = PurePosixPath(name)
    hidden = any(part.startswith(".") for part in path.parts)
    is_short = all(len(part) < 240 for part in path.parts) and len(name) < 1000
    is_plain = name.isprintable() and "\\" not in name
    return bool(path.parts) and is_short and is_plain and not path.is_absolute() and not hidden


@dataclass
class _Plan:
    """One file to download."""

    item: Item
    url: str
    target: Path
    done: str | None
    """Its SHA-256, if an earlier process downloaded it."""
    facts: Facts

    @property
    def size(self) -> int | None:
        """Total bytes; None if the server does not say."""
        return self.target.stat().st_size if self.done else self.facts.size


def _download(config: DownloadConfig, progress: Progress) -> None:
    """The result lists every file with its size and SHA-256."""
    folder = Path(config.target_dir).expanduser().absolute()
    folder.mkdir(parents=True, exist_ok=True)
    client = DownloadClient(
        Allowed.from_environment(), os.environ.get("HF_ENDPOINT") or HUB, os.environ.get("HF_TOKEN")
    )
    before, total = 0, None

    def on_bytes(done: int, _size: int | None) -> None:
        progress.step(before + done, total)

    watch = Watch(on_bytes, progress.raise_if_stopped, progress.phase)
    files: list[dict[str, Any]] = []
    plans = _plans(config, folder, client, watch, progress.run_dir.path / "result.json")
    sizes = [plan.size for plan in plans]
    total = None if None in sizes else sum(size or 0 for size in sizes)
    for plan in plans:
        sha256 = plan.done or _fetch(plan, client, watch, config.overwrite)
        files.append(recorded(plan.target, sha256))
        before += plan.target.stat().st_size
        progress.save_result({"files": files})
        _warn_if_damaged(plan.target, progress)
    progress.step(before, before)


def _plans(
    config: DownloadConfig, folder: Path, client: DownloadClient, watch: Watch, result_json: Path
) -> list[_Plan]:
    """Every file with its server's metadata, so that a missing one is known before the first download.

    Raises:
        DiskFullError: they do not all fit on the disk.
    """
    earlier, plans = known_hashes(result_json), list[_Plan]()
    for item in config.items:
        url = client.hub_url(item.repo, item.name, item.revision) if item.repo else client.file_url(item.url)
        target = _target(folder, item)
        done = earlier.get(mark_of(target))
        facts = Facts() if done else facts_of(client, url, watch)
        facts = replace(facts, sha256=item.sha256.lower() or facts.sha256)
        plans.append(_Plan(item, url, target, done, facts))
    missing = [plan for plan in plans if plan.done is None and not plan.target.exists()]
    check_room(folder, sum(max(0, (plan.size or 0) - unfinished_size(plan.target)) for plan in missing))
    return plans


def _target(folder: Path, item: Item) -> Path:
    target = folder / item.saved_as
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.parent.resolve().is_relative_to(folder.resolve()) or target.is_symlink():
        raise RunError(f"{target}: a link leads outside of {folder}. Choose another save_as.")
    return target


def _fetch(plan: _Plan, client: DownloadClient, watch: Watch, overwrite: bool) -> str:
    """Download one file, unless it exists; its SHA-256."""
    if plan.target.exists():
        same = already_there(plan.facts, plan.target, watch)
        if same:
            return same
        if not overwrite:
            raise RunError(f"{plan.target}: a different file has this name. Set save_as or overwrite.")
    watch.on_phase("downloading")
    return fetch(client, plan.url, plan.target, watch, plan.item.sha256.lower() or None).sha256


def _warn_if_damaged(target: Path, progress: Progress) -> None:
    if target.suffix in SAFE and (problem := look(target).problem):
        progress.warn(problem)


DOWNLOAD = FunctionTask(
    name="download",
    title="Download models",
    config_type=DownloadConfig,
    needs_device=False,
    find_problems=_find_problems,
    body=_download,
)
