"""FLOW itself: lodestone-rock/flow in a registered checkout.

FLOW is started in `flow/` in the run directory, which has its configuration under the name that it expects,
so that it writes nothing into its checkout. FLOW resumes from weights only: with a new optimizer state, and
at the start of an epoch, because its `offset` would shorten every later epoch.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from flowloom.config.flow_format.translate import refused_secrets
from flowloom.config.local_paths import local_problem
from flowloom.config.model_files import is_folder, resolve_paths
from flowloom.config.validation import booleans_for_numbers, problems_of
from flowloom.errors import ConfigError, Problem, RunError
from flowloom.files import write_json
from flowloom.json_types import is_object
from flowloom.model_library.requirements import unreadable
from flowloom.run.directory import RunDir
from flowloom.run.results import checkpoints_of, last_saved_step, newest_file_time
from flowloom.run.task import Command
from flowloom.trainers.base import Preset, Source, TrainerBackend, whole_number
from flowloom.trainers.checkouts import Checkout, checkouts_of
from flowloom.trainers.engine import TRAINER as FLOW
from flowloom.trainers.flow_upstream import start as flow_start
from flowloom.trainers.flow_upstream.config import UpstreamConfig, strange_keys
from flowloom.trainers.flow_upstream.dataclasses import FlowTrainer, names_of_trainers, read_trainer
from flowloom.trainers.missing_packages import missing_packages_of_script

NAME = "flow-upstream"
UNUSED = {"change_layer_every": 1, "trained_single_blocks": 1, "trained_double_blocks": 1}
"""Keys that newer trainers require but never use."""
PRESETS = [
    Preset(
        name="keywords",
        title="A few blocks",
        note="FLOW's newer trainer, on the blocks that are named.",
        config={
            "trainer": "src.trainer.train_chroma",
            "training": {"lr": 1e-5, "trained_layer_keywords": ["double_blocks.0.", "single_blocks.0."]},
        },
        sources=(
            Source("code", "The trainer and its keywords: lodestone-rock/flow, src/trainer/train_chroma.py."),
            Source("judgement", "Rate and blocks: ours, as an example."),
        ),
    ),
    Preset(
        name="lora",
        title="LoRA",
        note="FLOW's own adapter: its files do not say their alpha.",
        config={"trainer": "src.trainer.train_chroma_lora", "lora": {"rank": 16, "alpha": 16}},
        sources=(
            Source("code", "The trainer: lodestone-rock/flow, src/trainer/train_chroma_lora.py."),
            Source(
                "judgement", "Rank: ours. Alpha is the rank, which loaders assume if a file has no alpha."
            ),
        ),
    ),
]

_TRAINING = re.compile(
    r"(?<!minibatch )training, Rank 0: .*?\b(\d+)/(\d+) \[[\d:]+<[\d:?]+, +([\d.]+|\?) ?(s/it|it/s)"
)
_DRAWN = re.compile(r"^Combined image grid saved to (.+)$")
_LOADING = re.compile(r"(preparing captions and buckets|creating multi-res buckets):")


class FlowUpstream(TrainerBackend):
    """An unmodified trainer from a FLOW checkout."""

    name, title, supported_controls = NAME, "FLOW, upstream", frozenset[str]()
    needs_device = uses_all_devices = True
    writes_events = False
    bar_is_epoch = True
    preflight_command: tuple[str, ...] = ()
    immutable_keys: tuple[str, ...] = (
        "checkout",
        "trainer",
        "lora",
        "model",
        "training.save_folder",
        "inference.inference_folder",
    )

    def schema(self) -> dict[str, Any]:
        return UpstreamConfig.model_json_schema()

    def defaults(self) -> dict[str, Any]:
        return UpstreamConfig().model_dump(mode="json")

    def presets(self) -> list[Preset]:
        return PRESETS

    def check(self, config: dict[str, Any]) -> list[Problem]:
        # The keys that a trainer accepts are read from the checkout's own code.
        problems = [*refused_secrets(config), *booleans_for_numbers(config)]
        try:
            read = UpstreamConfig.model_validate(config)
        except ValidationError as error:
            unknown = _strange_by_hand(config)
            return [*problems, *chain.from_iterable(problems_of(error, config).values()), *unknown]
        problems += [
            *strange_keys(read, _accepted_keys(read)),
            *_missing_files(read),
            *_compatibility_problems(read, config),
        ]
        # One problem per key: a key that no FLOW trainer knows is also unknown to this one.
        return list({problem.where: problem for problem in reversed(problems)}.values())[::-1]

    def resolve(self, config: dict[str, Any]) -> UpstreamConfig:
        read = UpstreamConfig.model_validate(config)
        checkout, _ = _trainer_of(read)
        model = resolve_paths(read.model, Path())
        return read.model_copy(update={"checkout": str(checkout.path), "model": model})

    def prepare(self, config: dict[str, Any], run_dir: RunDir, source: str) -> None:
        read = self.resolve(config)
        folders = {
            "checkpoints": newest_file_time(_absolute(read.training.save_folder)),
            "samples": newest_file_time(_absolute(read.inference.inference_folder)),
        }
        run_dir.write_run(read, source, trainer=self.name, folders=folders)

    def command(self, run_dir: RunDir, resume: bool, devices: Sequence[str] = ()) -> Command:  # noqa: ARG002
        config = run_dir.read_config_as(UpstreamConfig)
        checkout, trainer = _trainer_of(config)
        folder = run_dir.path / "flow"
        folder.mkdir(exist_ok=True)
        content = _for_flow(config, trainer, run_dir)
        if resume:
            content = _resumed(content, run_dir)
        for name in trainer.config_names:
            write_json(folder / name, content)
        arguments = [flow_start.__file__, str(checkout.path), trainer.module, "training_config.json"]
        if trainer.is_script:
            arguments = [str(trainer.script)]
        environment = {"PYTHONUNBUFFERED": "1"}
        return Command([str(checkout.python), *arguments], environment, folder, checkout.path)

    def parse(self, line: str) -> dict[str, Any] | None:
        # FLOW prints neither its loss nor its learning rate.
        if found := _TRAINING.search(line):
            batch, batches, speed, unit = found.groups()
            number = float(speed) if speed not in ("?", "0.00") else None
            rate = 1 / number if number and unit == "s/it" else number
            return {
                "kind": "progress",
                "batch": int(batch),
                "batches": int(batches),
                "batches_per_s": rate,
            }
        if found := _DRAWN.search(line):
            return {"kind": "sampled", "dir": found[1]}
        return {"kind": "phase", "name": "reading data"} if _LOADING.search(line) else None

    def samples_per_batch(self, config: dict[str, Any]) -> int | None:
        return whole_number(config, "dataloader", "batch_size")

    def models(self, roots: Sequence[Path]) -> dict[str, list[Path]]:
        return FLOW.models(roots)


def _strange_by_hand(config: dict[str, Any]) -> list[Problem]:
    """Unknown keys of a configuration that has other problems too."""
    sections = ("training", "inference", "dataloader", "model")
    open_parts = {name: config[name] for name in sections if is_object(config.get(name))}
    defaults = UpstreamConfig()
    known = {name: type(defaults.sections[name]).model_construct(**part) for name, part in open_parts.items()}
    return list(strange_keys(defaults.model_copy(update=known)))


def _trainer_of(config: UpstreamConfig) -> tuple[Checkout, FlowTrainer]:
    """The checkout and the trainer that `config` selects.

    Raises:
        ConfigError: no checkout is registered, or not this one, or it has no such trainer.
    """
    checkouts = checkouts_of(NAME)
    if not checkouts:
        message = (
            "none is registered on this machine: run flowloom trainers install flow-upstream --path CHECKOUT."
        )
        raise ConfigError(NAME, [Problem("checkout", message)])
    wanted = config.checkout or str(checkouts[0].path)
    checkout = next((each for each in checkouts if str(each.path) == wanted), None)
    if checkout is None:
        paths = ", ".join(str(each.path) for each in checkouts)
        raise ConfigError(
            NAME, [Problem("checkout", f"{wanted!r} is not registered here. Registered: {paths}.")]
        )
    trainer = read_trainer(checkout.path, config.trainer)
    if trainer is None:
        names = ", ".join(names_of_trainers(checkout.path)) or "none"
        raise ConfigError(
            NAME,
            [Problem("trainer", f"{config.trainer!r} is not a trainer in this checkout. It has: {names}.")],
        )
    return checkout, trainer


def _compatibility_problems(config: UpstreamConfig, given: dict[str, Any]) -> list[Problem]:
    """Problems that would end the trainer in the checkout: missing packages, missing or unknown keys."""
    try:
        checkout, trainer = _trainer_of(config)
    except ConfigError as error:
        return list(error.problems)
    missing = missing_packages_of_script(NAME, checkout, trainer.script)
    problems = [Problem("checkout", f"{checkout.path} has no {', '.join(missing)}.")] if missing else []
    return [*problems, *_unfit_sections(config, trainer), *_unfit_keys(config, given, trainer)]


def _accepted_keys(config: UpstreamConfig) -> set[str]:
    """Paths of the keys that the trainer in the checkout accepts; it may be newer than our schema."""
    try:
        _, trainer = _trainer_of(config)
    except ConfigError:
        return set()
    accepted = set[str]()
    for place in config.sections:
        keys = trainer.sections.get("inference" if place.startswith("extra") else place)
        accepted |= {f"{place}.{name}" for name in (keys.allowed if keys else ())}
    return accepted


def _given(data: dict[str, Any], place: str) -> dict[str, Any]:
    """The section at `place` as the client sent it."""
    name, _, index = place.partition(".")
    return data.get(name, [])[int(index)] if index else data.get(name) or {}


def _unfit_sections(config: UpstreamConfig, trainer: FlowTrainer) -> Iterator[Problem]:
    if trainer.is_script and trainer.wants_main:
        message = f"{config.trainer} in this checkout cannot start its trainer: choose {trainer.module}."
        yield Problem("trainer", message)
    if config.lora and "lora" not in trainer.sections:
        yield Problem("lora", f"{config.trainer} does not train an adapter: remove this section.")
    if "lora" in trainer.sections and not config.lora:
        yield Problem("lora", f"{config.trainer} needs this section.")


def _unfit_keys(config: UpstreamConfig, given: dict[str, Any], trainer: FlowTrainer) -> Iterator[Problem]:
    for place, section in config.sections.items():
        keys = trainer.sections.get("inference" if place.startswith("extra") else place)
        if keys is None:
            continue
        said = _given(given, place)
        values = _values(section, place, trainer)
        for name in sorted(said.keys() - keys.allowed):
            if said[name] not in (None, "", getattr(type(section)(), name, None)):
                yield Problem(f"{place}.{name}", f"{config.trainer} in this checkout does not accept it.")
        for name in sorted(keys.needed - _OURS):
            if values.get(name) in (None, "", []) and name not in ("prompts", "base_resolution"):
                yield Problem(f"{place}.{name}", f"{config.trainer} in this checkout requires it.")


_OURS = {"save_folder", "inference_folder"}


def _values(section: Any, place: str, trainer: FlowTrainer) -> dict[str, Any]:
    """A section for FLOW: the keys that its trainer accepts, plus those it requires but never uses."""
    keys = trainer.sections.get("inference" if place.startswith("extra") else place)
    values = {name: value for name, value in section.model_dump(mode="json").items() if value is not None}
    if keys is None:
        return values
    if "trained_layer_keywords" in keys.needed:
        values = UNUSED | values
    return {name: value for name, value in values.items() if name in keys.allowed}


def _for_flow(config: UpstreamConfig, trainer: FlowTrainer, run_dir: RunDir) -> dict[str, Any]:
    """FLOW's training_config.json."""
    whole = {place: _values(section, place, trainer) for place, section in config.sections.items()}
    content: dict[str, Any] = {place: part for place, part in whole.items() if "." not in place}
    content["extra_inference_config"] = [part for place, part in whole.items() if "." in place]
    for part in whole.values():
        for name, value in part.items():
            if name.endswith(("_path", "_folder")) and isinstance(value, str):
                part[name] = _absolute(value)
    training = content["training"]
    training["save_folder"] = training.get("save_folder") or str(run_dir.path.absolute() / "checkpoints")
    for part in (content["inference"], *content["extra_inference_config"]):
        part["inference_folder"] = part["inference_folder"] or str(run_dir.path.absolute() / "samples")
    if "aim_path" in training:
        training["aim_path"] = training["aim_path"] or str(run_dir.path.absolute() / "flow" / "aim")
    return content


def _resumed(content: dict[str, Any], run_dir: RunDir) -> dict[str, Any]:
    """FLOW's configuration to resume from the newest weights, or to start if there are none.

    Raises:
        RunError: FLOW cannot resume an adapter: it would load it as the whole network.
    """
    newest = next(iter(checkpoints_of(run_dir)), None)
    if newest is None:
        return content
    if "lora" in content:
        raise RunError(f"{run_dir.path.name}: FLOW cannot resume a LoRA. Duplicate the run to start over.")
    content["model"]["chroma_path"] = str(newest)
    if "aim_path" in content["training"]:
        content["training"]["aim_steps"] = last_saved_step(run_dir) or 0
    return content


def _missing_files(config: UpstreamConfig) -> Iterator[Problem]:
    for place in ("model", "dataloader"):
        section: dict[str, Any] = getattr(config, place).model_dump()
        for name, value in section.items():
            if not (name.endswith("_path") and isinstance(value, str) and value):
                continue
            elsewhere = local_problem(f"{place}.{name}", value)
            yield from elsewhere
            if not elsewhere and not os.path.exists(_absolute(value)):  # noqa: PTH110 -- any text
                yield Problem(f"{place}.{name}", f"{value} does not exist.", "not-found")
            elif not elsewhere and place == "model" and (problem := unreadable(Path(_absolute(value)))):
                yield Problem(f"{place}.{name}", problem)
    yield from _addresses(config)
    if is_folder(config.dataloader.jsonl_metadata_path):
        message = "is a folder, and FLOW reads only JSONL files: convert the folder under Datasets."
        yield Problem("dataloader.jsonl_metadata_path", message)


def _addresses(config: UpstreamConfig) -> Iterator[Problem]:
    """Output folders that are not on this machine."""
    yield from local_problem("training.save_folder", config.training.save_folder)
    for place, part in config.sections.items():
        if folder := getattr(part, "inference_folder", ""):
            yield from local_problem(f"{place}.inference_folder", folder)


def _absolute(text: str) -> str:
    return str(Path(text).expanduser().absolute()) if text and "://" not in text else text


TRAINER = FlowUpstream()
