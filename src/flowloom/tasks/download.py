"""Download models: from the Hugging Face hub, or from any address."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Annotated
from urllib.parse import parse_qsl, unquote, urlsplit

from pydantic import Field, StringConstraints

from flowloom.errors import Problem, SourceError
from flowloom.run.directory import RunDir
from flowloom.schema import Section
from flowloom.storage.ssrf import host_of
from flowloom.tasks.base import Task

MAX_ITEMS = 200
KINDS = frozenset({
    ".safetensors", ".sft", ".gguf", ".onnx", ".onnx_data", ".bin", ".pt", ".pth", ".ckpt", ".npz", ".model",
    ".json", ".jsonl", ".txt", ".csv", ".md", ".yaml", ".yml", ".parquet", ".zip", ".tar",
    ".png", ".jpg", ".jpeg", ".webp", ".jxl", ".gif", ".avif",
})  # fmt: skip
"""Endings of what may be downloaded: weights, what belongs to them, and data; no programs."""
_SECRETS = {"token", "api_key", "apikey", "key", "access_token"}

Sha256 = Annotated[str, StringConstraints(pattern=r"^([0-9a-fA-F]{64})?$")]
Repo = Annotated[str, StringConstraints(pattern=r"^([\w-][\w.-]*/[\w-][\w.-]*)?$", max_length=200)]
Revision = Annotated[str, StringConstraints(pattern=r"^[\w./-]+$", max_length=200)]
Text = Annotated[str, StringConstraints(max_length=4096)]


class Item(Section):
    """One file to download: `repo` and `name`, or `url`."""

    repo: Repo = ""
    """Repository of the Hugging Face hub, OWNER/NAME."""
    name: Text = ""
    """The file in the repository, such as Chroma1-HD.safetensors."""
    revision: Revision = "main"
    """Branch, tag or commit of the repository."""
    url: Text = ""
    """Or the address of the file itself. HF_TOKEN is sent to the hub alone."""
    sha256: Sha256 = ""
    """What it must be; for large files of the hub it is known without."""
    save_as: Text = ""
    """Where it goes below target_dir; none: its own name."""

    @property
    def saved_as(self) -> str:
        """Where it goes below the target folder."""
        own = self.name or unquote(urlsplit(self.url).path)
        return self.save_as or PurePosixPath(own).name


class DownloadConfig(Section):
    """What to download, and where to."""

    target_dir: Text
    """The folder that the files go to; it is made."""
    items: Annotated[list[Item], Field(min_length=1, max_length=MAX_ITEMS)]
    """The files."""
    overwrite: bool = False
    """Put a file in place of another one of its name. Without it, that is an error unless they are alike."""


def _look(config: DownloadConfig) -> list[Problem]:
    problems = [
        Problem(f"items.{i}{f'.{key}' if key else ''}", message)
        for i, item in enumerate(config.items)
        for key, message in (_where_from(item), _where_to(item))
        if message
    ]
    names = [item.saved_as for item in config.items]
    if RunDir.around(Path(config.target_dir)):
        problems.append(Problem("target_dir", "lies in a run, which is the run's own."))
    twice = sorted({name for name in names if names.count(name) > 1})
    return problems + [
        Problem("items", f"{name} is written twice: give one of them save_as.") for name in twice
    ]


def _where_from(item: Item) -> tuple[str, str]:
    if bool(item.repo) == bool(item.url) or bool(item.repo) != bool(item.name):
        return "", "give repo and name, or url."
    if not item.url:
        return ("name", "leads out of the repository.") if not is_below(item.name) else ("", "")
    trouble = url_trouble(item.url)
    return ("url", trouble) if trouble else ("", "")


def url_trouble(url: str) -> str:
    """Why nothing is downloaded from `url`; nothing where it can be."""
    try:
        host_of(url)
    except SourceError as error:
        return str(error)
    if _SECRETS & {key.lower() for key, _ in parse_qsl(urlsplit(url).query)}:
        return "has a secret in it, which would be written down. Take an address without it."
    return ""


def _where_to(item: Item) -> tuple[str, str]:
    name = item.saved_as
    if not is_below(name) or name.endswith((".part", ".part.json")):
        return "save_as", f"{name!r} is no name of a file below target_dir."
    if PurePosixPath(name).suffix.lower() not in KINDS:
        return "save_as", f"{name!r} is of no kind that is downloaded: {', '.join(sorted(KINDS))}."
    return "", ""


def is_below(name: str) -> bool:
    """Whether a name stays below the folder that it is relative to, and is none that is hidden."""
    path = PurePosixPath(name)
    hidden = any(part.startswith(".") for part in path.parts)
    is_short = all(len(part) < 240 for part in path.parts) and len(name) < 1000
    is_plain = name.isprintable() and "\\" not in name
    return bool(path.parts) and is_short and is_plain and not path.is_absolute() and not hidden


TASK = Task(
    name="download",
    title="Download models",
    config_type=DownloadConfig,
    work="flowloom.tasks.downloading:work",
    needs_device=False,
    look=_look,
)
