"""Rules for every trainer."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest

from flowloom.config.run import RunConfig
from flowloom.run.directory import Control, RunDir
from flowloom.run.events import FIELDS
from flowloom.trainers import ALL
from flowloom.trainers.base import SourceKind, TrainerBackend
from flowloom.trainers.engine import TRAINER as FLOW

COUNTED = {"batch", "batches", "batches_per_s"}
"""Of a progress within one epoch (Task.parse)."""
EVERY = pytest.mark.parametrize("trainer", ALL.values(), ids=list(ALL))


@EVERY
def test_all_problems_are_reported_by_path_at_once(trainer: TrainerBackend) -> None:
    problems = trainer.check({"training": {"lr": "fast", "lrr": 1}})
    assert {"training.lr", "training.lrr"} <= {problem.where for problem in problems}


def test_trainers_have_the_names_that_are_in_the_paths() -> None:
    assert {name: trainer.name for name, trainer in ALL.items()} == {
        name: name for name in ("flow", "kohya", "flow-upstream")
    }


@EVERY
def test_a_trainer_can_be_asked_only_for_what_a_run_directory_knows(trainer: TrainerBackend) -> None:
    assert trainer.supported_controls <= set(get_args(Control))
    assert trainer.title
    assert isinstance(trainer.needs_device, bool)
    assert isinstance(trainer.uses_all_devices, bool)
    assert isinstance(trainer.writes_events, bool)


@EVERY
def test_the_defaults_miss_only_required_keys(trainer: TrainerBackend) -> None:
    defaults = trainer.defaults()
    assert {problem.where for problem in trainer.check(defaults)} == {
        problem.where for problem in trainer.check({})
    }
    assert json.loads(json.dumps([defaults, trainer.schema()]))


@EVERY
@pytest.mark.parametrize("section", [None, [], 3, "text", {"": 1}, [[]]], ids=repr)
def test_any_checked_configuration_gets_problems_and_stays_unchanged(
    trainer: TrainerBackend, section: Any
) -> None:
    config = dict.fromkeys(trainer.schema()["properties"], section)
    before = json.dumps(config)
    assert all(problem.text for problem in trainer.check(config))
    assert trainer.check(config)
    assert json.dumps(config) == before


@EVERY
def test_models_are_offered_for_keys_of_the_configuration(trainer: TrainerBackend, tmp_path: Path) -> None:
    found = trainer.models([tmp_path])
    assert found
    for key, paths in found.items():
        section, _, name = key.partition(".")
        assert name in trainer.defaults()[section], key
        assert paths == []


@EVERY
def test_presets_fit_the_schema(trainer: TrainerBackend) -> None:
    sections = trainer.schema()["properties"]
    for preset in trainer.presets():
        assert preset.config.keys() <= sections.keys()
        paths = {problem.where for problem in trainer.check(preset.config)}
        given = {f"{section}.{key}" for section, keys in preset.config.items() for key in keys}
        assert not paths & given, preset.name
    assert trainer.defaults().keys() <= sections.keys()


@EVERY
def test_every_preset_states_its_source(trainer: TrainerBackend) -> None:
    places = {"documentation": "docs/|quickstart/", "paper": r"arXiv:\d{4}\.\d{5}", "code": r"\.py\b"}
    for preset in trainer.presets():
        assert preset.sources, preset.name
        for source in preset.sources:
            assert source.kind in get_args(SourceKind)
            assert re.search(places.get(source.kind, "."), source.text), source
        text = " ".join(source.text for source in preset.sources)
        if re.search(r"\d+ GB|H100", preset.title):
            assert re.search("card", text), "how is it known that it fits?"
            kinds = {source.kind for source in preset.sources}
            assert kinds & {"documentation", "measurement"} or "ot measured" in text


@EVERY
def test_a_line_that_means_nothing_is_no_event_and_others_have_known_fields(trainer: TrainerBackend) -> None:
    lines = [
        "",
        "Traceback (most recent call last):",
        "\x00\ufffd",
        "training, Rank 0:   8%|8| 2/24 [00:11<02:00,  5.50s/it]",
        "steps:  10%|1         | 10/100 [00:05<00:45,  2.00it/s, avr_loss=0.123]",
    ]
    for event in filter(None, map(trainer.parse, lines)):
        assert not trainer.writes_events
        assert event.keys() - COUNTED <= FIELDS[event["kind"]] | {"kind"}


@EVERY
def test_the_values_that_a_trainer_fixes_are_keys_of_its_configuration(trainer: TrainerBackend) -> None:
    sections = trainer.schema()["properties"]
    assert not [path for path in trainer.immutable_keys if path and path.split(".")[0] not in sections]


def test_no_trainer_imports_torch() -> None:
    code = "import sys, flowloom.trainers; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_flow_prepares_a_run_that_its_command_trains(
    make_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    config: dict[str, Any] = make_config(limits={"max_steps": 2}).model_dump(mode="json")
    assert not FLOW.check(config)
    run_dir = RunDir.create("one", tmp_path)
    FLOW.prepare(config, run_dir, "a test")
    assert run_dir.read_run()["trainer"] == "flow"
    command = FLOW.command(run_dir, resume=False)
    assert subprocess.run(command.argv, check=False, timeout=200).returncode == 0
    assert run_dir.latest_checkpoint() == run_dir.checkpoint_dir(2)


def test_flow_finds_its_models_by_their_tensors(tiny_family: Any, tmp_path: Path) -> None:
    (tmp_path / "broken.safetensors").write_bytes(b"{")
    roots = [tmp_path, tiny_family.chroma_path.parent, tiny_family.vae_path.parent, tiny_family.t5_path]
    found = FLOW.models(roots)
    assert found["model.chroma_path"] == [tiny_family.chroma_path]
    assert found["model.vae_path"] == [tiny_family.vae_path]
    assert [path.parent for path in found["model.t5_path"]] == [tiny_family.t5_path]
