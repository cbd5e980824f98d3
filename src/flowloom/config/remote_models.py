"""Models that a configuration names by URL: the same configuration with files on this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from flowloom.config.flow_format.sections import ModelSection
from flowloom.config.model_files import resolve_paths
from flowloom.config.run import RunConfig
from flowloom.errors import ConfigError, Problem, SourceError
from flowloom.storage.base import StorageSection
from flowloom.storage.downloads.fetch import Watch
from flowloom.storage.local_copy import SILENT, header_copy, is_url, local_copy


def with_local_models(config: RunConfig, watch: Watch = SILENT) -> RunConfig:
    """`config` with the models that it names by URL downloaded, unless they are on this machine.

    Raises:
        ConfigError: one cannot be downloaded; the problem names its key.
        DiskFullError: the disk has no room.
    """
    return _with_models(config, lambda url: local_copy(url, config.storage, watch))


def with_model_headers(config: RunConfig) -> RunConfig:
    """`config` with stand-ins, of which only headers can be read, for the models that it names by URL.

    Raises:
        ConfigError: one cannot be read; the problem names its key.
    """
    return _with_models(config, lambda url: header_copy(url, _briefly(config.storage)))


def model_with_headers(model: ModelSection, storage: StorageSection) -> ModelSection:
    """`with_model_headers` for the two sections.

    Raises:
        ConfigError: one cannot be read; the problem names its key.
    """
    return _localized(model, lambda url: header_copy(url, _briefly(storage)))


def has_urls(model: ModelSection) -> bool:
    """True if a model is named by URL."""
    return any(True for _ in _urls(model))


def _urls(model: ModelSection) -> Iterator[tuple[str, str]]:
    return ((key, value) for key, value in model if key.endswith("path") and is_url(value))


def _briefly(storage: StorageSection) -> StorageSection:
    """Settings for a check, which reports a store that is down instead of waiting for it."""
    return storage.model_copy(update={"patience_minutes": 0.0, "tries": 2})


def _with_models(config: RunConfig, copy: Callable[[str], Path]) -> RunConfig:
    if not has_urls(config.model):
        return config
    return config.model_copy(update={"model": _localized(config.model, copy)})


def _localized(model: ModelSection, copy: Callable[[str], Path]) -> ModelSection:
    paths: dict[str, str] = {}
    problems: list[Problem] = []
    for key, url in _urls(model):
        try:
            paths[key] = str(copy(url))
        except SourceError as error:
            problems.append(Problem(f"model.{key}", str(error), "not-found"))
    if problems:
        raise ConfigError("the configuration", problems)
    # Again, because other files are found beside those that were copied.
    return resolve_paths(model.model_copy(update=paths), Path()) if paths else model
