"""Kohya's sd-scripts, in a checkout and with a Python of its own."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from flowloom.config.validation import booleans_for_numbers, problems_of
from flowloom.errors import ConfigError, Problem
from flowloom.model_library.requirements import choices
from flowloom.run.directory import RunDir
from flowloom.trainers.base import Command, Preset, whole_number
from flowloom.trainers.checkouts import Checkout, checkouts_of
from flowloom.trainers.kohya import hooks
from flowloom.trainers.kohya import log_parser as lines
from flowloom.trainers.kohya.arguments import known_arguments, raw_problems
from flowloom.trainers.kohya.compatibility import misfits, missing_files, no_script
from flowloom.trainers.kohya.config import KohyaConfig
from flowloom.trainers.kohya.files import arguments_of, script_of, write_files
from flowloom.trainers.kohya.presets import PRESETS
from flowloom.trainers.missing_packages import lacks_of_script

NAME = "kohya"
_STATE = re.compile(r"(?:-from(\d{8}))?-step(\d{8})-state$")


class Kohya:
    """Scripts of sd-scripts, started as they are but for what hooks.py adds."""

    name, title, abilities = NAME, "Kohya SS", frozenset({"stop", "checkpoint", "sample"})
    needs_device = True
    uses_all_devices = writes_events = bar_is_epoch = False
    examiner: tuple[str, ...] = ("flowloom.trainers.kohya.preflight",)
    fixed: tuple[str, ...] = ("checkout", "family", "method", "model", "network", "saving.output_name")

    def schema(self) -> dict[str, Any]:
        """See Trainer."""
        return KohyaConfig.model_json_schema()

    def defaults(self) -> dict[str, Any]:
        """See Trainer."""
        return KohyaConfig().model_dump(mode="json")

    def presets(self) -> list[Preset]:
        """See Trainer."""
        return PRESETS

    def check(self, config: dict[str, Any]) -> list[Problem]:
        """See Trainer; sd-scripts itself accepts unknown keys in silence."""
        problems = booleans_for_numbers(config)
        try:
            read = KohyaConfig.model_validate(config)
        except ValidationError as error:
            return [*problems, *chain.from_iterable(problems_of(error, config).values())]
        return [*problems, *missing_files(read), *misfits(read), *_unknown_to_the_script(read)]

    def prepare(self, config: dict[str, Any], run_dir: RunDir, source: str) -> None:
        """See Trainer."""
        read = KohyaConfig.model_validate(config)
        run_dir.write_run(read, source, trainer=self.name)
        write_files(read, run_dir.path.absolute())

    def command(self, run_dir: RunDir, resume: bool, devices: Sequence[str] = ()) -> Command:  # noqa: ARG002
        """See Trainer; one process, on the first card that it sees."""
        config = run_dir.read_config_as(KohyaConfig)
        folder = run_dir.path.absolute()
        write_files(config, folder)
        checkout, script = checkout_of(config), script_of(config)
        if script is None:
            raise ConfigError(NAME, [no_script(config)])
        base, state = _newest_state(config, folder) if resume else (0, None)
        epochs = _epochs_behind(state) if state else 0
        more = ["--resume", str(state)] if state else []
        if state and "initial_step" in known_arguments(checkout.path, script):
            # Or else it takes the state's steps for its own, and trains that many epochs less.
            more += ["--initial_step", "0"]
        name = f"{config.saving.output_name}-from{base:08d}" if base else config.saving.output_name
        words = ["--config_file", str(folder / "config.toml"), *shlex.split(config.raw_arguments), *more]
        words += ["--output_dir", str(folder / "checkpoints"), "--output_name", name]
        start = [str(checkout.python), hooks.__file__, str(folder), str(checkout.path), script]
        environment = {"PYTHONUNBUFFERED": "1", "COLUMNS": "200", hooks.BASE: str(base)}
        environment[hooks.BASE_EPOCH] = str(epochs)
        return Command([*start, *words], environment, checkout.path, checkout.path)

    def parse(self, line: str) -> dict[str, Any] | None:
        """See Trainer."""
        return lines.parse(line)

    def total_steps(self, config: Any) -> int | None:
        """See Trainer; epochs, which sd-scripts prefers, are steps only once it has counted the images."""
        has_epochs = whole_number(config, "training", "max_train_epochs")
        return None if has_epochs else whole_number(config, "training", "max_train_steps")

    def samples_per_batch(self, config: dict[str, Any]) -> int | None:
        """See Trainer: its bar counts updates; batches of different sizes have no one answer."""
        sizes = {dataset.batch_size for dataset in KohyaConfig.model_validate(config).datasets}
        updates = whole_number(config, "training", "gradient_accumulation_steps") or 1
        return sizes.pop() * updates if len(sizes) == 1 else None

    def models(self, roots: Sequence[Path]) -> dict[str, list[Path]]:
        """See Trainer; of FLOW's files those that are the same here."""
        found = choices(roots)
        same = {"chroma_path": "pretrained_model_name_or_path", "vae_path": "ae", "t5_path": "t5xxl"}
        return {f"model.{ours}": found.get(f"model.{flows}", []) for flows, ours in same.items()}


def checkout_of(config: KohyaConfig) -> Checkout:
    """The sd-scripts that is used.

    Raises:
        ConfigError: none is named, or not this one.
    """
    known = checkouts_of(NAME)
    if not known:
        message = "no sd-scripts is named on this machine: flowloom trainers install kohya."
        raise ConfigError(NAME, [Problem("checkout", message)])
    found = next((one for one in known if not config.checkout or str(one.path) == config.checkout), None)
    if found is None:
        paths = ", ".join(str(one.path) for one in known)
        raise ConfigError(NAME, [Problem("checkout", f"{config.checkout!r} is not one of {paths}.")])
    return found


def _unknown_to_the_script(config: KohyaConfig) -> Iterator[Problem]:
    """Arguments that this very checkout does not take."""
    try:
        checkout, script = checkout_of(config), script_of(config)
    except ConfigError as error:
        yield from error.problems
        yield from raw_problems(config.raw_arguments, {})
        return
    known = known_arguments(checkout.path, script) if script else {}
    if script and not known:
        yield Problem("checkout", f"{checkout.path} holds no {script}, or one that cannot be read.")
    yield from _missing_modules(checkout, config, script)
    yield from raw_problems(config.raw_arguments, known)
    places = {
        key: f"{name}.{key}" for name, part in config for key in getattr(type(part), "model_fields", ())
    }
    for key in arguments_of(config, Path()) if known else ():
        if key not in known:
            yield Problem(places.get(key, key), f"{script} of this checkout takes no --{key}.")


def _missing_modules(checkout: Checkout, config: KohyaConfig, script: str | None) -> Iterator[Problem]:
    """What the script would end at in its first seconds."""
    more = {"tensorboard"} | ({"bitsandbytes"} if "8bit" in config.training.optimizer_type.lower() else set())
    lacking = lacks_of_script(NAME, checkout, checkout.path / script, more) if script else ()
    if lacking:
        yield Problem(
            "checkout", f"{checkout.path} lacks {', '.join(lacking)}: install it in its environment."
        )


def _newest_state(config: KohyaConfig, folder: Path) -> tuple[int, Path | None]:
    """The newest whole state, and how many updates it has behind it."""
    states = (folder / "checkpoints").glob(f"{config.saving.output_name}*-state")
    found = [(done, state) for state in states if (done := _updates_behind(state))]
    return max(found, default=(0, None))


def _updates_behind(state: Path) -> int | None:
    """As its note says, or its name where nobody heard it being saved; None where it is not whole."""
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
    """As its note says; 0 where that does not."""
    try:
        return int(json.loads((state / hooks.NOTE).read_text())["epoch"])
    except (OSError, ValueError, LookupError, TypeError):
        return 0


TRAINER = Kohya()
