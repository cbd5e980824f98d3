"""How a run of another trainer stands: no field disappears because the newest event does not tell it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flowloom.run.directory import RunDir
from flowloom.run.events import FIELDS, EventWriter
from flowloom.server.runs.view import view_of


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    return RunDir.create("run", tmp_path)


def say(writer: EventWriter, kind: str, **fields: Any) -> None:
    writer.write(kind, **dict.fromkeys(FIELDS[kind]) | fields)


def write(run_dir: RunDir, trainer: str, config: dict[str, Any]) -> EventWriter:
    run_dir.run_json.write_text(json.dumps({"trainer": trainer, "config": config}))
    return EventWriter(run_dir.events_jsonl)


@pytest.mark.parametrize("is_step_newest", [True, False])
def test_steps_and_the_progress_bar_of_kohya_are_shown_together(
    run_dir: RunDir, is_step_newest: bool
) -> None:
    writer = write(run_dir, "kohya", {"training": {"max_train_epochs": 4, "max_train_steps": 1600}})
    say(writer, "started", device="cuda:0", versions={}, method="kohya")
    events = [
        ("progress", {"step": 7, "max_steps": 250, "samples_per_s": 2.0, "eta_s": 486.0}),
        ("step", {"step": 7, "epoch": 1, "loss": 0.5, "loss_smooth": 0.4, "lr": 1e-4, "samples_per_s": 2.0}),
    ]
    for kind, fields in events if is_step_newest else events[::-1]:
        say(writer, kind, **fields)
    writer.close()
    view = view_of(run_dir.path)
    assert (view.step, view.max_steps, view.eta_s) == (7, 250, 486.0)
    assert (view.epoch, view.loss, view.lr, view.samples_per_s) == (1, 0.4, 1e-4, 2.0)


@pytest.mark.parametrize(
    ("trainer", "config", "total"),
    [
        ("kohya", {"training": {"max_train_steps": 1600, "max_train_epochs": None}}, 1600),
        ("kohya", {"training": {"max_train_steps": 1600, "max_train_epochs": 3}}, None),
        ("flow", {"limits": {"max_steps": 40}}, 40),
        ("flow-upstream", {"limits": {"max_steps": 40}}, None),
        ("kohya", {"training": 3}, None),
        ("no-such-trainer", {"limits": {"max_steps": 40}}, None),
    ],
)
def test_total_steps_are_read_where_each_trainer_states_them(
    run_dir: RunDir, trainer: str, config: Any, total: int | None
) -> None:
    write(run_dir, trainer, config).close()
    assert view_of(run_dir.path).max_steps == total


@pytest.mark.parametrize("name", ["hint", "cure"])
def test_the_hint_of_a_failed_run_is_shown_also_under_its_old_key(run_dir: RunDir, name: str) -> None:
    write(run_dir, "flow", {}).close()
    end = {"seq": 0, "time": 1.0, "kind": "failed", "error": "RunError", "message": "m", name: "resume it"}
    run_dir.events_jsonl.write_text(f"{json.dumps(end)}\n")
    view = view_of(run_dir.path)
    assert (view.state, view.error and view.error.hint) == ("failed", "resume it")
