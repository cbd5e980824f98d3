"""Files of a tagger or captioner: in a user's folder, or downloaded from the hub."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from flowloom.storage.hub_models import fetch_model
from flowloom.tasks.base import Progress


class ModelSettings(Protocol):
    """The settings of a model in a configuration."""

    @property
    def repo(self) -> str: ...
    @property
    def revision(self) -> str: ...
    @property
    def model_path(self) -> str: ...
    @property
    def models_dir(self) -> str: ...


@dataclass(frozen=True)
class FoundModel:
    """A model's folder."""

    folder: Path
    about: dict[str, Any]
    """Its identity: the commit on the hub, or the sha256 of its files."""


def find_model(settings: ModelSettings, patterns: Sequence[str], progress: Progress) -> FoundModel:
    """The folder with the files that `patterns` name.

    Raises:
        SourceError: the hub does not have them, or cannot be reached.
    """
    if settings.model_path:
        folder = Path(settings.model_path)
        files = sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})
        return FoundModel(
            folder, {"path": str(folder), "sha256": {path.name: _sha256(path) for path in files}}
        )
    progress.phase("downloading the model")
    models_dir = Path(settings.models_dir) if settings.models_dir else None
    folder, commit = fetch_model(settings.repo, settings.revision or None, patterns, models_dir)
    progress.phase("loading the model")
    return FoundModel(folder, {"repo": settings.repo, "revision": commit})


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
