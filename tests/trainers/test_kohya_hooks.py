"""Our hooks in a minimal script of sd-scripts; test_kohya_run.py runs the real ones."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flowloom.run.directory import RunDir
from flowloom.trainers.kohya.trainer import TRAINER
from tests.fakes.least_sd_scripts import OTHER_LIBRARY


def events_of(run_dir: RunDir, resume: bool, when: dict[int, str]) -> list[dict[str, Any]]:
    """The events of one start; `when` has the request for each step."""
    command = TRAINER.command(run_dir, resume=resume)
    environ = {"PATH": "/usr/bin", **command.env}
    events = []
    with subprocess.Popen(
        command.argv, cwd=command.cwd, env=environ, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        for line in process.stdout:
            if event := TRAINER.parse(line.strip()):
                events.append(event)
                if event["kind"] == "step" and event["step"] in when:
                    run_dir.request(when[event["step"]])  # pyright: ignore[reportArgumentType]
        assert process.wait(20) == 0
    return events


@pytest.fixture
def run_dir(kohya_config: Callable[..., dict[str, Any]], least_checkout: Path, tmp_path: Path) -> RunDir:
    """A prepared run of 300 steps."""
    run_dir = RunDir.create("run", tmp_path / "runs")
    config = kohya_config(
        family="sd15",
        training={"max_train_steps": 300},
        saving={"save_every_n_steps": 1000},
        sampling={"prompts": ["a fox"], "sample_every_n_steps": 1000},
    )
    TRAINER.prepare(config, run_dir, "a test")
    return run_dir


def of_kind(events: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [event for event in events if event["kind"] == kind]


def test_the_hooks_report_steps_and_follow_requests_and_a_resume_continues_the_count(run_dir: RunDir) -> None:
    run_dir.request("checkpoint")
    events = events_of(run_dir, False, {10: "sample", 20: "stop"})
    checkpoints = run_dir.path / "checkpoints"
    assert (checkpoints / "last-step00000001.safetensors").read_bytes() == b"whole", "by the script itself"
    (sampled,) = of_kind(events, "sampled")
    assert sampled["step"] > 10
    assert Path(sampled["dir"]).exists()
    (record,) = json.loads((checkpoints / "sample" / "samples.json").read_text())
    assert record["file"] == Path(sampled["dir"]).name
    settings = {"prompt": "a fox", "step": sampled["step"], "seed": 42, "width": 1024, "steps": 28}
    assert settings.items() <= record.items()
    done = of_kind(events, "stopped")[0]["step"]
    assert 20 <= done < 300
    assert [event["step"] for event in of_kind(events, "saved")] == [1, done]
    assert len(list(checkpoints.glob("*-state"))) == 2
    assert f"--resume {checkpoints}/last-step{done:08d}-state" in shlex.join(
        TRAINER.command(run_dir, True).argv
    )

    again = events_of(run_dir, True, {})
    assert [event["step"] for event in of_kind(again, "step")] == list(range(done + 1, 301))
    assert of_kind(again, "started")[0]["resumed_from"] == done
    assert (checkpoints / f"last-from{done:08d}.safetensors").exists()
    assert not of_kind(events + again, "warning")
    assert json.loads(run_dir.run_json.read_text())["trainer"] == "kohya"


def test_steps_report_their_epoch_and_the_rate_that_they_used(run_dir: RunDir) -> None:
    steps = of_kind(events_of(run_dir, False, {120: "stop"}), "step")
    used = [(event["step"], event["epoch"], round(event["lr"], 6)) for event in steps[:120]]
    assert used[:2] == [(1, 0, 0.005), (2, 0, 0.015)], (
        "of the image network, and not the rate of the next step"
    )
    assert [epoch for _, epoch, _ in used] == [0] * 100 + [1] * 20
    again = of_kind(events_of(run_dir, True, {}), "step")
    assert again[0]["epoch"] == 1, "the count continues"


def test_another_version_is_supported_in_part_and_a_warning_says_what_is_missing(
    run_dir: RunDir, least_checkout: Path
) -> None:
    (least_checkout / "library" / "train_util.py").write_text(OTHER_LIBRARY)
    events = events_of(run_dir, False, {3: "checkpoint", 20: "stop"})
    (warning,) = of_kind(events, "warning")
    assert "previews" in warning["message"]
    first, last = of_kind(events, "saved")
    assert 3 <= first["step"] < last["step"] < 300
    assert Path(last["dir"]).read_bytes() == b"weights", "by the hooks"
    assert "repeat" in of_kind(events_of(run_dir, True, {}), "warning")[0]["message"]


def test_a_run_without_hooks_continues(run_dir: RunDir, least_checkout: Path) -> None:
    other = (least_checkout / "accelerate" / "tracking.py").read_text().replace("def log(", "def write(")
    (least_checkout / "accelerate" / "tracking.py").write_text(
        other + "    def __getattr__(self, name):\n        return lambda *_, **__: None\n"
    )
    events = events_of(run_dir, False, {})
    (warning,) = of_kind(events, "warning")
    assert "Only the log" in warning["message"]
    assert (run_dir.path / "checkpoints" / "last.safetensors").exists()


def test_an_incomplete_state_is_not_resumed(run_dir: RunDir) -> None:
    checkpoints = run_dir.path / "checkpoints"
    for name in (
        "last-step00000010-state",
        "last-step00000020-state",
        "last-from00000010-step00000005-state",
    ):
        (checkpoints / name).mkdir()
    for name in ("last-step00000010-state", "last-from00000010-step00000005-state"):
        (checkpoints / name / "random_states_0.pkl").touch()
    assert "last-from00000010-step00000005-state" in shlex.join(TRAINER.command(run_dir, True).argv)
    (checkpoints / "last-state").mkdir()
    (checkpoints / "last-state" / "flowloom.json").write_text('{"step": 30}')
    assert f"--resume {checkpoints}/last-state" in shlex.join(TRAINER.command(run_dir, True).argv)
    (checkpoints / "last-state" / "flowloom.json").write_text('{"st')
    assert "last-from00000010-step00000005-state" in shlex.join(TRAINER.command(run_dir, True).argv)
