"""Kohya's sd-scripts as a trainer backend, run from its own checkout with its own Python."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from flowloom.config.validation import booleans_for_numbers, problems_of
from flowloom.errors import ConfigError, Problem
from flowloom.model_library.requirements import choices
from flowloom.run.directory import RunDir
from flowloom.run.task import Command
from flowloom.trainers.base import Preset, TrainerBackend, whole_number
from flowloom.trainers.checkouts import Checkout, checkouts_of
from flowloom.trainers.kohya import hooks, log_parser
from flowloom.trainers.kohya.arguments import known_arguments, raw_problems
from flowloom.trainers.kohya.compatibility import compatibility_problems, missing_files, no_script
from flowloom.trainers.kohya.config import KohyaConfig
from flowloom.trainers.kohya.copies import needs_copies, with_copies
from flowloom.trainers.kohya.files import arguments_of, script_of, write_files
from flowloom.trainers.kohya.presets import PRESETS
from flowloom.trainers.missing_packages import missing_packages_of_script

NAME = "kohya"
_STATE = re.compile(r"(?:-from(\d{8}))?-step(\d{8})-state$")


class Kohya(TrainerBackend):
    """Unmodified sd-scripts, started through hooks.py."""

    name, title, supported_controls = NAME, "Kohya SS", frozenset({"stop", "checkpoint", "sample"})
    needs_device = True
    uses_all_devices = writes_events = bar_is_epoch = False
    preflight_command: tuple[str, ...] = ("flowloom.trainers.kohya.preflight",)
    immutable_keys: tuple[str, ...] = (
        "checkout",
        "family",
        "method",
        "model",
        "network",
        "saving.output_name",
    )

    def schema(self) -> dict[str, Any]:
        return KohyaConfig.model_json_schema()

    def defaults(self) -> dict[str, Any]:
        return KohyaConfig().model_dump(mode="json")

    def presets(self) -> list[Preset]:
        return PRESETS

    def check(self, config: dict[str, Any]) -> list[Problem]:
        # sd-scripts ignores unknown keys without a message.
        problems = booleans_for_numbers(config)
        try:
            read = KohyaConfig.model_validate(config)
        except ValidationError as error:
            return [*problems, *chain.from_iterable(problems_of(error, config).values())]
        return [*problems, *missing_files(read), *compatibility_problems(read), *_unknown_to_the_script(read)]

    def resolve(self, config: dict[str, Any]) -> KohyaConfig:
        return KohyaConfig.model_validate(config)

    def prepare(self, config: dict[str, Any], run_dir: RunDir, source: str) -> None:
        read = self.resolve(config)
        run_dir.write_run(read, source, trainer=self.name)
        write_files(with_copies(read), run_dir.path.absolute())

    def command(self, run_dir: RunDir, resume: bool, devices: Sequence[str] = ()) -> Command:  # noqa: ARG002
        config = run_dir.read_config_as(KohyaConfig)
        folder = run_dir.path.absolute()
        write_files(with_copies(config), folder)
        checkout, script = checkout_of(config), script_of(config)
        if script is None:
            raise ConfigError(NAME, [no_script(config)])
        base, state = _newest_state(config, folder) if resume else (0, None)
        epochs = _epochs_behind(state) if state else 0
        more = ["--resume", str(state)] if state else []
        if state and "initial_step" in known_arguments(checkout.path, script):
            # Otherwise it counts the state's steps again and trains fewer epochs.
            more += ["--initial_step", "0"]
        name = f"{config.saving.output_name}-from{base:08d}" if base else config.saving.output_name
        arguments = ["--config_file", str(folder / "config.toml"), *shlex.split(config.raw_arguments), *more]
        arguments += ["--output_dir", str(folder / "checkpoints"), "--output_name", name]
        start = [str(checkout.python), hooks.__file__, str(folder), str(checkout.path), script]
        environment = {"PYTHONUNBUFFERED": "1", "COLUMNS": "200", hooks.BASE: str(base)}
        environment[hooks.BASE_EPOCH] = str(epochs)
        python = str(checkout.python)
        if not needs_copies(config):
            return Command([*start, *arguments], environment, checkout.path, checkout.path, python)
        first = [sys.executable, "-m", "flowloom.trainers.kohya.start", str(folder), str(checkout.path)]
        return Command([*first, *start, *arguments], environment, folder, checkout.path, python)

    def parse(self, line: str) -> dict[str, Any] | None:
        return log_parser.parse(line)

    def total_steps(self, config: Any) -> int | None:
        # sd-scripts prefers epochs, and their steps are known only after it has counted the images.
        has_epochs = whole_number(config, "training", "max_train_epochs")
        return None if has_epochs else whole_number(config, "training", "max_train_steps")

    def samples_per_batch(self, config: dict[str, Any]) -> int | None:
        # Its progress bar counts steps.
        sizes = {dataset.batch_size for dataset in KohyaConfig.model_validate(config).datasets}
        updates = whole_number(config, "training", "gradient_accumulation_steps") or 1
        return sizes.pop() * updates if len(sizes) == 1 else None

    def models(self, roots: Sequence[Path]) -> dict[str, list[Path]]:
        found = choices(roots)
        same = {"chroma_path": "pretrained_model_name_or_path", "vae_path": "ae", "t5_path": "t5xxl"}
        return {f"model.{ours}": found.get(f"model.{flows}", []) for flows, ours in same.items()}


def checkout_of(config: KohyaConfig) -> Checkout:
    """The checkout of sd-scripts that `config` selects.

    Raises:
        ConfigError: none is registered, or not this one.
    """
    checkouts = checkouts_of(NAME)
    if not checkouts:
        message = "no sd-scripts is registered on this machine: run flowloom trainers install kohya."
        raise ConfigError(NAME, [Problem("checkout", message)])
    path = config.checkout
    chosen = next((each for each in checkouts if not path or str(each.path) == path), None)
    if chosen is None:
        paths = ", ".join(str(each.path) for each in checkouts)
        raise ConfigError(NAME, [Problem("checkout", f"{config.checkout!r} is not one of {paths}.")])
    return chosen


def _unknown_to_the_script(config: KohyaConfig) -> Iterator[Problem]:
    """Arguments that this checkout does not accept."""
    try:
        checkout, script = checkout_of(config), script_of(config)
    except ConfigError as error:
        yield from error.problems
        yield from raw_problems(config.raw_arguments, {})
        return
    known = known_arguments(checkout.path, script) if script else {}
    if script and not known:
        yield Problem("checkout", f"{checkout.path} has no readable {script}.")
    yield from _missing_modules(checkout, config, script)
    yield from raw_problems(config.raw_arguments, known)
    places = {
        key: f"{name}.{key}"
        for name, part in config
        if isinstance(part, BaseModel)
        for key in type(part).model_fields
    }
    for key in arguments_of(config, Path()) if known else ():
        if key not in known:
            yield Problem(places.get(key, key), f"{script} in this checkout does not accept --{key}.")


def _missing_modules(checkout: Checkout, config: KohyaConfig, script: str | None) -> Iterator[Problem]:
    """Missing packages that would end the script in its first seconds."""
    more = {"tensorboard"}
    if "8bit" in config.training.optimizer_type.lower():
        more.add("bitsandbytes")
    missing = missing_packages_of_script(NAME, checkout, checkout.path / script, more) if script else ()
    if missing:
        yield Problem(
            "checkout", f"{checkout.path} has no {', '.join(missing)}: install it in its environment."
        )


def _newest_state(config: KohyaConfig, folder: Path) -> tuple[int, Path | None]:
    """The newest complete state and its step."""
    states = (folder / "checkpoints").glob(f"{config.saving.output_name}*-state")
    found = [(done, state) for state in states if (done := _updates_behind(state))]
    return max(found, default=(0, None))


def _updates_behind(state: Path) -> int | None:
    """The step in its note, or in its name if the hooks did not see the save; None if it is incomplete."""
    try:
        return int(json.loads((state / hooks.NOTE).read_text())["step"])
    except FileNotFoundError:
        counted = _STATE.search(state.name)
        # sd-scripts writes it last.
        is_whole = counted and (state / "random_states_0.pkl").exists()
        return int(counted[1] or 0) + int(counted[2]) if counted and is_whole else None
    except (ValueError, LookupError, TypeError):
        return None


def _epochs_behind(state: Path) -> int:
    """The epoch in its note; 0 if it has none."""
    try:
        return int(json.loads((state / hooks.NOTE).read_text())["epoch"])
    except (OSError, ValueError, LookupError, TypeError):
        return 0


TRAINER = Kohya()
