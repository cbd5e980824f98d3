"""A configuration file, FLOW's or ours, with flags over it, to the `RunConfig` of a run.

Flag over file over default. FLOW's other keys are honoured or answered (flow_keys.py); everything that is
wrong is said at once.
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
from flowloom.config.flags import Laid, Overrides, lay_over
from flowloom.config.flow_format.keys import FLOW_KEYS
from flowloom.config.flow_format.translate import general_name, refuse_foreign, translate
from flowloom.config.model_files import cached_files, missing_files, resolve_paths, with_reason
from flowloom.config.run import DataloaderSection, ModelSection, RunConfig
from flowloom.config.secrets import usable_secrets
from flowloom.config.unused_keys import idle_keys
from flowloom.config.validation import Place, booleans_for_numbers, problems_of
from flowloom.errors import ConfigError, DataError, Problem
from flowloom.text_files import read_text


@dataclass(frozen=True)
class LoadedConfig:
    """A configuration that is valid, and what came with it."""

    config: RunConfig
    secrets: dict[str, str] = field(repr=False)
    """By the name of the environment variable that hands each to its user; never to be written."""
    notes: list[str]
    """One line for each of FLOW's keys that something else replaced, and for what may surprise."""
    source: Path


def read_config(path: Path | str, overrides: Overrides = (), *, with_files: bool = False) -> LoadedConfig:
    """The configuration in the JSON file at `path`, with `overrides`, (dotted key, text) pairs, over it.

    Paths in it are relative to the current directory, as in FLOW, or, where nothing is there, to the
    file's own; they come out absolute. `with_files` also asks for everything that training reads.

    Raises:
        ConfigError: with all problems at once.
    """
    path = Path(path)
    return load_config(_read_json(path), overrides, path, with_files=with_files)


def load_config(
    data: dict[str, Any], overrides: Overrides, source: Path, *, with_files: bool = False
) -> LoadedConfig:
    """`read_config` for what stood in the file `source`.

    Raises:
        ConfigError: with all problems at once.
    """
    of_flow = [flag for flag in overrides if general_name(flag[0]) in FLOW_KEYS]
    laid = Laid(deepcopy(data))
    lay_over(laid, of_flow)
    refuse_foreign(laid, source)
    secrets = usable_secrets() | translate(laid)
    lay_over(laid, [flag for flag in overrides if flag not in of_flow])
    config, valid, problems = _validate(laid)
    if with_files:
        known = {problem.path for problem in problems}
        found = _missing(config, valid, source, laid)
        problems += [problem for problem in found if problem.path not in known]
    problems = [*laid.problems, *problems]
    if config is None or problems:
        raise ConfigError(str(source), problems)
    config = resolve_paths(config, source.parent)
    return LoadedConfig(config, secrets, [*laid.notes, *_advice(config, secrets)], source)


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
        message = f"there is no such file.{f' In its folder: {near}.' if near else ''}"
        raise ConfigError(str(path), [Problem("", message)]) from None
    except (OSError, DataError) as error:
        raise ConfigError(str(path), [Problem("", f"cannot be read ({error}).")]) from error
    except json.JSONDecodeError as error:
        # Not the line itself: it may hold a token.
        hint = " A comma before it is one too many." if error.doc[: error.pos].rstrip().endswith(",") else ""
        message = f"line {error.lineno}, column {error.colno}: {error.msg}.{hint}"
        raise ConfigError(str(path), [Problem("", message)]) from None
    except RecursionError:
        raise ConfigError(str(path), [Problem("", "is nested too deeply for a configuration.")]) from None
    if not isinstance(data, dict):
        raise ConfigError(str(path), [Problem("", "holds no JSON object: a configuration is { ... }.")])
    if repeated:
        raise ConfigError(str(path), [Problem(name, "is given twice in one section.") for name in repeated])
    return data


def _validate(laid: Laid) -> tuple[RunConfig | None, dict[str, Any], list[Problem]]:
    """The configuration, if it is valid; the part of the data that is; the problems of the rest.

    What is wrong is taken out and the rest looked at again, so that contradictions between sections show
    up together with wrong values.
    """
    data = {name: section for name, section in laid.data.items() if section is not None}
    problems = booleans_for_numbers(data)
    while True:
        try:
            return RunConfig.model_validate(data), data, _placed(problems, laid)
        except ValidationError as error:
            found = problems_of(error, data, FLOW_KEYS)
        known = [problem.path for problem in problems]
        for place, those in found.items():
            # A contradiction with a key that is wrong by itself may go away with it.
            problems += [those[0]] if place else [p for p in those if not _is_about(p, known)]
        if found.keys() == {()}:
            return None, data, _placed(problems, laid)
        data = _without(data, [place for place in found if place])


def _is_about(problem: Problem, paths: Sequence[str]) -> bool:
    return any(path in problem.path or path in problem.message for path in paths)


def _without(data: dict[str, Any], places: Sequence[Place]) -> dict[str, Any]:
    """`data` without its sections, or the keys and entries of sections, that `places` lie in."""
    wrong: dict[str | int, set[str | int]] = {}
    for place in places:
        wrong.setdefault(place[0], set()).update(place[1:2])
    kept: dict[str, Any] = {}
    for name, section in data.items():
        inside = wrong.get(name)
        if inside is None:
            kept[name] = section
        elif isinstance(section, dict) and inside:
            kept[name] = {key: value for key, value in section.items() if key not in inside}
        elif isinstance(section, list) and inside:
            kept[name] = [entry for i, entry in enumerate(section) if i not in inside]
    return kept


def _placed(problems: Sequence[Problem], laid: Laid) -> list[Problem]:
    return [replace(problem, path=laid.origin(problem.path) or problem.path) for problem in problems]


def _missing(config: RunConfig | None, valid: dict[str, Any], source: Path, laid: Laid) -> list[Problem]:
    model = ModelSection.model_validate(valid.get("model", {}))
    dataloader = DataloaderSection.model_validate(valid.get("dataloader", {}))
    datasets = [DatasetSection.model_validate(section) for section in valid.get("datasets", [])]
    folder = source.parent
    absolute = [resolve_paths(section, folder) for section in datasets]
    sections = (resolve_paths(model, folder), resolve_paths(dataloader, folder), absolute)
    found = missing_files(*sections, cached_files(config) if config else ())
    return _placed([with_reason(problem, config) for problem in found] if config else found, laid)


def _advice(config: RunConfig, secrets: dict[str, str]) -> list[str]:
    notes: list[str] = []
    for guidance in sorted({section.guidance for section in config.previews} - {0.0}):
        effect = "passed on, but Chroma is trained with 0, and its pictures may suffer"
        notes.append(f"inference.guidance {guidance:g}: {effect}.")
    is_online = any(spec.kind == "wandb" and getattr(spec, "mode", "") == "online" for spec in config.loggers)
    if is_online and "WANDB_API_KEY" not in secrets:
        notes.append("loggers: W&B cannot follow the run until WANDB_API_KEY is set.")
    if config.hub.repo_id and "HF_TOKEN" not in secrets:
        notes.append(f"hub.repo_id {config.hub.repo_id}: nothing can be uploaded until HF_TOKEN is set.")
    return [*notes, *idle_keys(config)]
