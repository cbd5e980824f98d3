"""Translate FLOW's other keys to ours, by the table in keys.py."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flowloom.config.flags import Laid
from flowloom.config.flow_format.keys import (
    FLOW_KEYS,
    NEEDED,
    Fate,
    Foreign,
    Moved,
    Replaced,
    Secret,
    Tracked,
)
from flowloom.config.secrets import read_secrets
from flowloom.errors import ConfigError, Problem
from flowloom.json_types import is_array, is_object

Settings = dict[str, tuple[str, Any]]
"""Settings of a tracker: by name, the path where each was set, and its value."""


def general_name(path: str) -> str:
    """`path` in the spelling of keys.py, where every inference section is `inference`."""
    section, _, last = path.rpartition(".")
    return f"inference.{last}" if section.startswith("extra_inference_config.") else path


def refuse_foreign(laid: Laid, source: Path) -> None:
    """Refuse a file for one of FLOW's trainers that Flowloom does not support.

    Raises:
        ConfigError: it is one.
    """
    foreign = [
        (path, fate.trainer)
        for path, node, name in _flow_keys(laid.data)
        if isinstance(fate := FLOW_KEYS[general_name(path)], Foreign) and node[name]
    ]
    for path, trainer in sorted(foreign, key=lambda found: not found[0].startswith("model.")):
        message = f"belongs to FLOW's {trainer} trainer, which is not supported."
        raise ConfigError(str(source), [Problem(laid.origin(path) or path, message)])


def translate(laid: Laid) -> dict[str, str]:
    """Move FLOW's other keys in `laid` to ours and add notes about them; the secrets among them."""
    secrets: dict[str, str] = {}
    tracked: dict[str, Settings] = {}
    explained: dict[str, str] = {}
    for path, section, name in list(_flow_keys(laid.data)):
        value, fate = section.pop(name), FLOW_KEYS[general_name(path)]
        if answer := _answer(fate):
            explained[general_name(path)] = answer
        if value is None or isinstance(fate, Replaced | Foreign):
            continue
        if isinstance(fate, Moved):
            _move(laid, path, fate.to, value)
        elif isinstance(fate, Secret):
            secrets |= _take_secret(laid, path, fate.name, value)
        else:
            tracked.setdefault(fate.kind, {})[fate.setting] = (path, value)
    laid.notes += [f"{path}: {answer}" for path, answer in explained.items()]
    for kind, settings in tracked.items():
        _track(laid, kind, settings, secrets)
    if "WANDB_API_KEY" in secrets and "wandb" not in tracked:
        _track(laid, "wandb", {}, secrets)
    return secrets


def refused_secrets(data: dict[str, Any]) -> list[Problem]:
    """Problems for tokens in a configuration received over HTTP.

    They must not get into a run directory or the queue, and a client must not replace the studio's own.
    """
    return [
        Problem(
            path,
            f"a token is not stored with a run. Save it as {fate.name} in the studio's settings "
            f"(PUT /api/secrets/{fate.name}), and remove it here.",
        )
        for path, node, name in _flow_keys(data)
        if isinstance(fate := FLOW_KEYS[general_name(path)], Secret) and node[name]
    ]


def _answer(fate: Fate) -> str:
    if isinstance(fate, Foreign):
        return f"belongs to FLOW's {fate.trainer} trainer."
    if isinstance(fate, Replaced):
        return fate.by
    return f"now {fate.to}. {fate.difference}" if isinstance(fate, Moved) and fate.difference else ""


def _flow_keys(data: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Each key of `data` that is in the table: its path, its section and its name."""
    sections = [(name, data.get(name)) for name in ("training", "inference", "dataloader", "model")]
    extra = data.get("extra_inference_config")
    if is_array(extra):
        sections += [(f"extra_inference_config.{i}", section) for i, section in enumerate(extra)]
    for place, section in sections:
        if is_object(section):
            yield from (
                (f"{place}.{n}", section, n) for n in section if general_name(f"{place}.{n}") in FLOW_KEYS
            )


def _move(laid: Laid, path: str, to: str, value: Any) -> None:
    section, _, name = to.rpartition(".")
    if laid.data.get(section) is None:
        laid.data[section] = {}
    node = laid.data[section]
    if not is_object(node):
        return
    if node.get(name) is None:
        node[name] = value
        laid.origins[to] = laid.origin(path) or path
    elif node[name] != value:
        laid.notes.append(f"{path}: ignored, because {to} is set.")


def _take_secret(laid: Laid, path: str, env_name: str, value: Any) -> dict[str, str]:
    flag = laid.origin(path)
    if not isinstance(value, str):
        laid.problems.append(Problem(flag or path, "must be text."))
        return {}
    if not value:
        return {}
    seen = " Flags are visible in the list of processes." if flag else ""
    laid.notes.append(
        f"{path}: used as {env_name} and not stored; set {env_name} before 'flowloom resume'.{seen}"
    )
    return {env_name: value}


def _track(laid: Laid, kind: str, settings: Settings, secrets: dict[str, str]) -> None:
    """Add FLOW's tracker of this `kind` to `loggers`, if FLOW would use it."""
    loggers = laid.data.setdefault("loggers", [])
    if not is_array(loggers) or not _is_wanted(laid, kind, settings, secrets):
        return
    entry = next((old for old in loggers if is_object(old) and old.get("kind") == kind), None)
    if entry is None:
        entry = {"kind": kind}
        loggers.append(entry)
        if kind == "wandb" and "WANDB_API_KEY" not in read_secrets() | secrets:
            entry["mode"] = "offline"
            laid.notes.append("wandb: WANDB_API_KEY is not set; the run is stored offline for 'wandb sync'.")
    for setting, (path, value) in settings.items():
        if setting not in entry:
            entry[setting] = _local(value) if setting == "repo" else value
            laid.origins[f"loggers.{loggers.index(entry)}.{setting}"] = laid.origin(path) or path


def _is_wanted(laid: Laid, kind: str, settings: Settings, secrets: dict[str, str]) -> bool:
    needed = NEEDED[kind]
    if needed not in settings and not (kind == "wandb" and "WANDB_API_KEY" in secrets):
        key = next(name for name, fate in FLOW_KEYS.items() if fate == Tracked(kind, needed))
        laid.notes += [f"{path}: no effect without {key}." for path, value in settings.values() if value]
        return False
    if kind == "aim" and importlib.util.find_spec("aim") is None:
        laid.notes.append(
            "training.aim_path: Aim is not installed and records nothing: pip install 'flowloom[aim]'."
        )
        return False
    return True


def _local(repo: Any) -> Any:
    """An absolute Aim folder, so that a run resumed elsewhere finds it; a server's URL is unchanged."""
    return os.path.abspath(repo) if isinstance(repo, str) and "://" not in repo else repo  # noqa: PTH100
