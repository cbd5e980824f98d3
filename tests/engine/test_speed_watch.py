"""Runs that become slow or wait for data are reported once, with the cause."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from flowloom.engine.__main__ import run_engine
from flowloom.engine.speed_watch import SpeedWatch, is_spilled
from flowloom.engine.updates import Updates
from flowloom.run.directory import RunDir
from tests.engine.test_run import events

CPU = torch.device("cpu")


def findings(*phases: tuple[int, float, float]) -> list[tuple[int, str]]:
    """Findings, each with its step, in phases of (steps, seconds of a step, seconds waited)."""
    watch, step, found = SpeedWatch(CPU), 0, []
    for count, step_s, wait_s in phases:
        for _ in range(count):
            step += 1
            if finding := watch.after_step(step_s, wait_s):
                assert finding.hint
                found.append((step, finding.message))
    return found


def test_twenty_slow_steps_are_reported_once():
    assert findings((100, 1.0, 0.0), (100, 3.5, 0.0)) == [
        (120, "Steps take 3.50 s instead of 1.00 s, and not because of data.")
    ]


def test_fewer_or_less_slow_steps_are_not_reported():
    assert findings((100, 1.0, 0.0), (10, 9.0, 0.0), (100, 2.9, 0.0)) == []


def test_a_run_that_becomes_slow_again_is_reported_again():
    slow, usual = (30, 4.0, 0.0), (50, 1.0, 0.0)
    assert [step for step, _ in findings(usual, slow, usual, slow)] == [70, 150]


def test_results_that_are_read_each_tenth_step_are_not_slow_steps():
    uneven = [(9, 0.01, 0.0), (1, 9.0, 0.0)] * 30
    assert findings(*uneven) == []


def test_slow_data_is_named_as_the_cause():
    (_, message), *_ = findings((100, 1.0, 0.0), (20, 5.0, 4.0))
    assert message == "Steps take 5.00 s instead of 1.00 s: 80% of the time they wait for data."


def test_waiting_for_data_from_the_start_is_reported_once():
    assert findings((300, 1.0, 0.4)) == [(100, "Steps wait for data 40% of the time.")]
    assert findings((300, 1.0, 0.2)) == []


@pytest.mark.parametrize(("reserved", "expected"), [(7, False), (10, True)])
def test_memory_beyond_the_devices_is_the_cause(
    reserved: int, expected: bool, monkeypatch: pytest.MonkeyPatch
):
    device = torch.device("cuda")
    properties = type("Properties", (), {"total_memory": 8})()
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: reserved)
    assert is_spilled(device) is expected
    watch = SpeedWatch(device)
    found = [watch.after_step(1.0 if step < 100 else 4.0, 0.0) for step in range(120)]
    assert ("driver uses host memory" in str(found[-1])) is expected


def test_a_run_whose_data_is_slow_says_so(make_run: Callable[..., RunDir], monkeypatch: pytest.MonkeyPatch):
    whole = Updates.__iter__

    def waiting(self: Updates) -> Iterator[Any]:
        for batch in whole(self):
            yield batch._replace(wait_s=10.0)

    monkeypatch.setattr(Updates, "__iter__", waiting)
    run_dir = make_run(
        limits={"max_steps": 100}, training={"train_minibatch": 1}, dataloader={"batch_size": 1}
    )
    run_engine(run_dir)
    (warning,) = events(run_dir, "warning")
    assert "wait for data" in warning["message"]
    assert "cache.latents" in warning["hint"]
