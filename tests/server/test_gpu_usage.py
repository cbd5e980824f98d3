"""What a run's cards did is noted while it runs, and told in as few points as one asks for."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flowloom.server.runs.gpu_usage import add_note, read_loads
from flowloom.server.system import Card
from tests.server.conftest import Studio, wait_for

DRIVER = """#!/bin/sh
echo "NVIDIA H100 80GB HBM3, 97, 70123, 81559, 64, 512.34"
echo "NVIDIA H100 80GB HBM3, 3, 15, 81559, [N/A], 70.10"
"""
"""As `nvidia-smi` answers the question that the studio asks it."""


def card(index: int, load: float | None, memory: float = 1000.0) -> Card:
    return Card(
        device=f"cuda:{index}",
        name="a card",
        load_percent=load,
        memory_used_mib=memory,
        memory_total_mib=81559.0,
        temperature_c=60.0,
        power_w=None,
    )


@pytest.fixture
def run_path(tmp_path: Path) -> Path:
    (tmp_path / "studio").mkdir()
    return tmp_path


def test_a_run_without_notes_has_no_curves(run_path: Path):
    add_note(run_path, 10.0, [])
    assert read_loads(run_path, 100).times == []
    assert read_loads(run_path, 100).cards == {}


def test_each_stretch_is_told_by_its_mean_and_its_last_time(run_path: Path):
    for i, load in enumerate((10.0, 30.0, None, 50.0)):
        add_note(run_path, 100.0 + i, [card(0, load), card(10, 1.0), card(2, 2.0)])
    told = read_loads(run_path, 2)
    assert told.times == [101.0, 103.0]
    assert list(told.cards) == ["cuda:0", "cuda:2", "cuda:10"]
    assert told.cards["cuda:0"].load_percent == [20.0, 50.0]
    assert told.cards["cuda:0"].power_w == [None, None]


def test_a_card_that_came_later_and_a_line_that_was_cut_off_spoil_nothing(run_path: Path):
    add_note(run_path, 1.0, [card(0, 5.0)])
    with (run_path / "studio" / "cards.jsonl").open("a") as file:
        file.write('[2.0,{"cuda:0":[9\n')
    add_note(run_path, 3.0, [card(0, 7.0), card(1, 8.0)])
    told = read_loads(run_path, 10)
    assert told.times == [1.0, 3.0]
    assert told.cards["cuda:0"].load_percent == [5.0, 7.0]
    assert told.cards["cuda:1"].load_percent == [None, 8.0]


@pytest.mark.slow
def test_while_a_run_is_on_a_card_the_studio_notes_what_that_card_does(
    studio_at: Callable[..., Studio],
    tiny_config: Callable[..., dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "nvidia-smi").write_text(DRIVER)
    (tools / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    studio = studio_at().start()
    body = {"name": "on-a-card", "config": tiny_config(limits={"max_steps": 100_000}), "devices": ["cuda:0"]}
    studio.post("/api/flow/train/start", body)
    told = wait_for(lambda: (found := studio.get("/api/runs/on-a-card/cards"))["times"] and found)
    assert list(told["cards"]) == ["cuda:0"]
    assert told["cards"]["cuda:0"]["load_percent"][0] == 97
    assert told["cards"]["cuda:0"]["memory_used_mib"][0] == 70123
    studio.post("/api/runs/on-a-card/kill")
    studio.wait("on-a-card")
