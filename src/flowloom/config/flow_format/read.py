"""Read a configuration file, FLOW's or ours, and command-line flags into a `RunConfig`.

Flags override the file, the file overrides defaults. FLOW's other keys are translated or explained (keys.py).
All problems are reported at once.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from flowloom.config.data_sections import DatasetSection
from flowloom.config.flags import Laid, Overrides, apply_flags
from flowloom.config.flow_format.keys import FLOW_KEYS
from flowloom.config.flow_format.translate import general_name, refuse_foreign, translate
from flowloom.config.model_files import check_files, missing_files, resolve_paths, with_reason
from flowloom.config.remote_models import model_with_headers
from flowloom.config.run import DataloaderSection, ModelSection, RunConfig
from flowloom.config.secrets import usable_secrets
from flowloom.config.unused_keys import idle_keys
from flowloom.config.validation import Place, booleans_for_numbers, problems_of
from flowloom.errors import ConfigError, DataError, Problem
from flowloom.json_types import is_array, is_object
from flowloom.models.family import family_for
from flowloom.storage.base import StorageSection
from flowloom.text_files import read_text


@dataclass(frozen=True)
class LoadedConfig:
    """A valid configuration, its secrets and its notes."""

    config: RunConfig
    secrets: dict[str, str] = field(repr=False)
    """By environment variable; they must not be written to disk."""
    notes: list[str]
    """A line for each of FLOW's keys that was replaced, and for settings with surprising effects."""
    source: Path


def read_config(path: Path | str, overrides: Overrides = (), *, with_files: bool = False) -> LoadedConfig:
    """The configuration in the JSON file at `path`, overridden by `overrides`, (dotted key, text) pairs.

    Paths are relative to the current directory, as in FLOW, or, if nothing is there, to the folder of the
    file; the result has absolute paths. `with_files` also checks that the files of training exist.

    Raises:
        ConfigError: with all problems at once.
    """
    path = Path(path)
    return load_config(_read_json(path), overrides, path, with_files=with_files)


def load_config(
    data: dict[str, Any], overrides: Overrides, source: Path, *, with_files: bool = False
) -> LoadedConfig:
    """`read_config` for the content of the file `source`.

    Raises:
        ConfigError: with all problems at once.
    """
    of_flow = [flag for flag in overrides if general_name(flag[0]) in FLOW_KEYS]
    laid = Laid(deepcopy(data))
    apply_flags(laid, of_flow)
    refuse_foreign(laid, source)
    secrets = usable_secrets() | translate(laid)
    apply_flags(laid, [flag for flag in overrides if flag not in of_flow])
    config, valid, problems = _validate(laid)
    if with_files:
        known = {problem.where for problem in problems}
        missing = _missing(config, valid, source, laid)
        problems += [problem for problem in missing if problem.where not in known]
    problems = [*laid.problems, *problems]
    if config is None or problems:
        raise ConfigError(str(source), problems)
    config = resolve_paths(config, source.parent)
    return LoadedConfig(config, secrets, [*laid.notes, *_notes(config, secrets)], source)


def _read_json(path: Path) -> dict[str, Any]:
    repeated: list[str] = []

    def as_dict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        repeated.extend(name for name in dict.fromkeys(names) if names.count(name) > 1)
        return dict(pairs)

    try:
        data = json.loads(read_text(path), object_pairs_hook=as_dict)
    except FileNotFoundError:
        near = ", ".join(sorted(file.name for file in path.parent.glob("*.json"))[:5])
        hint = f"In its folder: {near}." if near else ""
        raise ConfigError(str(path), [Problem("", "does not exist.", "not-found", hint)]) from None
    except (OSError, DataError) as error:
        raise ConfigError(str(path), [Problem("", f"cannot be read ({error}).")]) from error
    except json.JSONDecodeError as error:
        # Without the line itself, which may contain a token.
        hint = "Remove the comma before it." if error.doc[: error.pos].rstrip().endswith(",") else ""
        message = f"line {error.lineno}, column {error.colno}: {error.msg}."
        raise ConfigError(str(path), [Problem("", message, hint=hint)]) from None
    except RecursionError:
        raise ConfigError(str(path), [Problem("", "is nested too deeply for a configuration.")]) from None
    if not is_object(data):
        raise ConfigError(str(path), [Problem("", "is not a JSON object: write { ... }.")])
    if repeated:
        raise ConfigError(str(path), [Problem(name, "is set twice in one section.") for name in repeated])
    return data


def _validate(laid: Laid) -> tuple[RunConfig | None, dict[str, Any], list[Problem]]:
    """The configuration (None if it is contradictory), the valid part of the data, and all problems.

    Wrong values are removed and the rest is validated again, because contradictions between sections show
    up only when every value is valid.
    """
    data = {name: section for name, section in laid.data.items() if section is not None}
    problems = booleans_for_numbers(data)
    while True:
        config, by_place = _parse(data)
        wrong = [problem.where for problem in problems]
        contradictions = by_place.pop((), [])
        # A contradiction with a key that is wrong may disappear when it is corrected.
        problems += [problem for problem in contradictions if not _is_about(problem, wrong)]
        problems += [first for first, *_ in by_place.values()]
        if not by_place:
            return config, data, _placed(problems, laid)
        data = _without(data, list(by_place))


def _parse(data: dict[str, Any]) -> tuple[RunConfig | None, dict[Place, list[Problem]]]:
    try:
        return RunConfig.model_validate(data), {}
    except ValidationError as error:
        return None, problems_of(error, data, FLOW_KEYS)


def _is_about(problem: Problem, paths: Sequence[str]) -> bool:
    return any(path in problem.where or path in problem.message for path in paths)


def _without(data: dict[str, Any], places: Sequence[Place]) -> dict[str, Any]:
    """`data` without the sections, or their keys and entries, that `places` are in."""
    wrong: dict[str | int, set[str | int]] = {}
    for place in places:
        wrong.setdefault(place[0], set()).update(place[1:2])
    kept: dict[str, Any] = {}
    for name, section in data.items():
        inside = wrong.get(name)
        if inside is None:
            kept[name] = section
        elif is_object(section) and inside:
            kept[name] = {key: value for key, value in section.items() if key not in inside}
        elif is_array(section) and inside:
            kept[name] = [entry for i, entry in enumerate(section) if i not in inside]
    return kept


def _placed(problems: Sequence[Problem], laid: Laid) -> list[Problem]:
    return [replace(problem, where=laid.origin(problem.where) or problem.where) for problem in problems]


def _missing(config: RunConfig | None, valid: dict[str, Any], source: Path, laid: Laid) -> list[Problem]:
    model = ModelSection.model_validate(valid.get("model", {}))
    dataloader = DataloaderSection.model_validate(valid.get("dataloader", {}))
    datasets = [DatasetSection.model_validate(section) for section in valid.get("datasets", [])]
    folder = source.parent
    unreadable: Sequence[Problem] = ()
    try:
        model = model_with_headers(model, StorageSection.model_validate(valid.get("storage", {})))
    except ConfigError as error:
        unreadable = error.problems
    if config:
        config = resolve_paths(config.model_copy(update={"model": model}), folder)
        found = [with_reason(problem, config) for problem in check_files(config)]
    else:
        absolute = [resolve_paths(section, folder) for section in datasets]
        found = missing_files(resolve_paths(model, folder), resolve_paths(dataloader, folder), absolute)
    return _placed([*unreadable, *found], laid)


def _notes(config: RunConfig, secrets: dict[str, str]) -> list[str]:
    notes: list[str] = []
    for guidance in sorted({section.guidance for section in config.previews} - {0.0}):
        if effect := family_for(config.model).defaults.guidance_effect:
            notes.append(f"inference.guidance {guidance:g}: {effect}.")
    is_online = any(spec.kind == "wandb" and getattr(spec, "mode", "") == "online" for spec in config.loggers)
    if is_online and "WANDB_API_KEY" not in secrets:
        notes.append("loggers: W&B needs WANDB_API_KEY to track the run.")
    if config.hub.repo_id and "HF_TOKEN" not in secrets:
        notes.append(f"hub.repo_id {config.hub.repo_id}: uploads need HF_TOKEN.")
    return [*notes, *idle_keys(config)]
