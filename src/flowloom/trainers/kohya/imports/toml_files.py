"""sd-scripts' config TOML, also in the nested forms of other front ends, with its dataset TOML."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from typing import Any

from flowloom.errors import ConfigError, Problem
from flowloom.json_types import is_array, is_object
from flowloom.text_files import without_mark
from flowloom.trainers.kohya.imports.arguments import Placer
from flowloom.trainers.kohya.imports.datasets import of_folders, of_toml
from flowloom.trainers.kohya.imports.families import family_of, is_on, method_of, require_known
from flowloom.trainers.kohya.imports.networks import has_algorithm
from flowloom.trainers.kohya.imports.result import Files, Given, Imported
from flowloom.trainers.kohya.imports.values import number_of, words_of

_PAIRS = frozenset({"network_args", "optimizer_args", "lr_scheduler_args"})
"""NAME=VALUE arguments that some front ends write as a table."""
_NESTED = frozenset({"args", "dataset_args"})
"""Tables within the sections of derrian-distro's front end."""
_OF_FRONT_ENDS = frozenset({"sdxl", "fa", "warmup_ratio"})
"""Keys of that front end that mean other keys of sd-scripts."""


def from_toml(text: str, dataset_toml: str = "", files: Files | None = None) -> Imported:
    """The configuration in a TOML and the dataset TOML imported with it.

    Raises:
        ConfigError: one of them is no TOML, or describes a training that the studio does not have.
    """
    content = read_toml("toml", text)
    datasets = read_dataset("dataset_toml", dataset_toml) if dataset_toml else {}
    if not datasets and is_array(content.get("datasets")):
        datasets = {key: content.pop(key) for key in ("general", "datasets") if key in content}
    if "subsets" in content and not datasets:
        datasets = {"datasets": [{"subsets": content.pop("subsets")}]}
    stated = list(_leaves(content))
    values = {given.key: given.value for given in stated}
    require_known("toml", values)
    found = Imported({"family": family_of(values), "method": method_of(values)})
    placer = Placer(found.config["family"], files or Files(), found)
    for given in _once(stated, found):
        _place(given, values, placer, has_datasets=bool(dataset_toml))
    found.config["datasets"] = of_toml(datasets, placer) if datasets else of_folders(placer)
    placer.finish()
    return found


def read_toml(name: str, text: str) -> dict[str, Any]:
    """The content of a TOML.

    Raises:
        ConfigError: it is none.
    """
    try:
        return tomllib.loads(without_mark(text))
    except tomllib.TOMLDecodeError as error:
        is_escape = "escape" in str(error) or "hex value" in str(error)
        hint = " Write paths with backslashes in single quotes: 'D:\\sets\\fox'." if is_escape else ""
        raise ConfigError(name, [Problem(name, f"not TOML: {error}.{hint}")]) from None


def read_dataset(name: str, text: str) -> dict[str, Any]:
    """A dataset configuration, which sd-scripts reads as TOML or as JSON.

    Raises:
        ConfigError: it is neither.
    """
    try:
        content = json.loads(without_mark(text))
    except ValueError:
        return read_toml(name, text)
    return content if is_object(content) else {name: content}


def _leaves(table: dict[str, Any], prefix: str = "", depth: int = 0) -> Iterator[Given]:
    """Every key with its value; sections, and sections within them, only group keys."""
    for key, value in table.items():
        name = f"{prefix}{key}"
        if not is_object(value):
            yield Given(name, key, value)
        elif key in _PAIRS and not _NESTED & value.keys():
            pairs = words_of(value)
            yield Given(name, key, pairs, "from a table" if pairs else "")
        elif not value:
            yield Given(name, key, value)
        else:
            yield from _leaves(value, f"{name}.", depth + 1)


def _once(stated: list[Given], found: Imported) -> Iterator[Given]:
    """Each argument once, by its key; of repeated arguments the last counts, as in sd-scripts."""
    last = {given.key: given for given in stated}
    for given in stated:
        if last[given.key] is given:
            yield Given(given.key, given.key, given.value, given.note)
        else:
            found.leave(given.name, given.value, f"stated again as {last[given.key].name}, which counts")


def _place(given: Given, values: dict[str, Any], placer: Placer, *, has_datasets: bool) -> None:
    if given.key == "dataset_config":
        if has_datasets:
            placer.found.translated[given.name] = "datasets, from the dataset TOML"
        else:
            placer.found.leave(
                given.name, given.value, "import this dataset TOML together with the configuration"
            )
    elif given.key in _OF_FRONT_ENDS:
        _of_front_end(given, values, placer)
    elif given.key == "network_args" and has_algorithm(given.value) and "network_module" not in values:
        placer.state("network", "network_module", "lycoris.kohya")
        placer.place(given)
    else:
        placer.place(given)


def _of_front_end(given: Given, values: dict[str, Any], placer: Placer) -> None:
    found, ratio = placer.found, number_of(given.value)
    if given.key == "sdxl":
        found.translated[given.name] = f"family = {placer.family}"
    elif given.key == "fa" and "network_module" not in values and is_on(given.value):
        placer.state("network", "network_module", "networks.lora_fa")
        found.translated[given.name] = "network.network_module = networks.lora_fa"
    elif given.key == "fa" and not is_on(given.value):
        found.understood.append(given.name)
    elif given.key == "warmup_ratio" and "lr_warmup_steps" not in values and _is_share(ratio):
        placer.state("training", "lr_warmup_steps", ratio)
        found.translated[given.name] = f"training.lr_warmup_steps = {ratio}"
    else:
        found.leave(given.name, given.value)


def _is_share(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1
