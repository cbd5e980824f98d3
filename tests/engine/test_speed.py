"""Speeds of a machine: measured once for a device, kept, used by preflight and by the run."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from flowloom.cli.main import main
from flowloom.config.run import RunConfig
from flowloom.engine.build import build
from flowloom.engine.estimate import speed
from flowloom.engine.estimate.speed import ASSUMED, Speed, speed_of, speeds_path
from flowloom.engine.parallel.ranks import Ranks

CPU = torch.device("cpu")


@pytest.fixture
def no_speeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the user."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return speeds_path()


def test_speeds_are_those_of_this_machine_and_measured_once(no_speeds: Path) -> None:
    measured = speed_of(CPU)
    left = torch.ones(1024, 1024)
    seconds = []
    for _ in range(10):
        start = time.perf_counter()
        torch.mm(left, left)
        seconds.append(time.perf_counter() - start)
    # Other work on this machine may be between the two.
    assert 0.1 < measured.product_flops_per_s / (2 * 1024**3 / min(seconds)) < 10
    assert 2e8 < measured.copy_bytes_per_s < 1e12
    assert 1e7 < measured.updates_per_s < 1e11
    assert measured.is_measured
    assert speed_of(CPU) == measured
    assert len(json.loads(no_speeds.read_text())) == 1


@pytest.mark.parametrize("content", ["", "[]", '{"KEY": 3}', '{"KEY": [1, 2]}', '{"KEY": [1e12, 0, 1]}'])
def test_damaged_speeds_are_measured_again(
    no_speeds: Path, content: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "LONGEST_S", 0.0)
    speed_of(CPU)
    (key,) = json.loads(no_speeds.read_text())
    no_speeds.write_text(content.replace("KEY", key))
    again = speed_of(CPU)
    assert json.loads(no_speeds.read_text()) == {key: list(again[:3])}


def test_the_speeds_of_other_devices_are_kept(no_speeds: Path) -> None:
    no_speeds.parent.mkdir(parents=True)
    no_speeds.write_text(json.dumps({"another machine": [1.0, 2.0, 3.0]}))
    measured = speed_of(CPU)
    assert list(json.loads(no_speeds.read_text()).values()) == [[1.0, 2.0, 3.0], list(measured[:3])]


def test_a_folder_that_cannot_be_written_costs_only_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert speed_of(CPU).is_measured


def test_ranks_plan_with_the_slowest_speeds() -> None:
    fast, slow = Speed(3.0, 1.0, 5.0), Speed(2.0, 4.0, 5.0)
    assert fast.slowest(slow) == slow.slowest(fast) == Speed(2.0, 1.0, 5.0)
    assert not fast.slowest(ASSUMED).is_measured


def test_preflight_and_run_use_the_speeds_that_are_known(
    make_config: Callable[..., RunConfig],
    no_speeds: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = make_config(memory={"checkpointed_blocks": 2})
    fits = build(make_config(), Ranks()).memory_plan
    assert fits.speed == ASSUMED
    assert not no_speeds.exists()
    speed_of(CPU)
    (key,) = json.loads(no_speeds.read_text())
    known = Speed(7e10, 3e9, 5e8)
    no_speeds.write_text(json.dumps({key: list(known[:3])}))
    assert build(config, Ranks()).memory_plan.speed == known
    path = tmp_path / "config.json"
    path.write_text(config.model_dump_json())
    for target, is_measured in (([], True), (["--gpu-gib", "12"], False)):
        main(["preflight", str(path), "--json", *target])
        report = json.loads(capsys.readouterr().out)
        assert report["memory"]["plan"]["is_measured"] is is_measured
        assert ("0.07 TFLOP/s" in report["memory"]["plan"]["speed"]) is is_measured
    main(["preflight", str(path)])
    assert "measured here: products 0.07 TFLOP/s" in capsys.readouterr().out
