"""GPU usage is recorded while a run is running, and read in at most the requested number of points."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flowloom.server.runs.gpu_usage import append_usage, read_gpu_usage
from flowloom.server.system import Gpu
from tests.server.conftest import Studio, wait_for

DRIVER = """#!/bin/sh
echo "NVIDIA H100 80GB HBM3, 97, 70123, 81559, 64, 512.34"
echo "NVIDIA H100 80GB HBM3, 3, 15, 81559, [N/A], 70.10"
"""
"""Output of `nvidia-smi` for the studio's query."""


def gpu(index: int, load: float | None, memory: float = 1000.0) -> Gpu:
    return Gpu(
        device=f"cuda:{index}",
        name="a GPU",
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


def test_a_run_without_records_has_no_curves(run_path: Path):
    append_usage(run_path, 10.0, [])
    assert read_gpu_usage(run_path, 100).times == []
    assert read_gpu_usage(run_path, 100).gpus == {}


def test_an_interval_has_its_mean_and_its_last_time(run_path: Path):
    for i, load in enumerate((10.0, 30.0, None, 50.0)):
        append_usage(run_path, 100.0 + i, [gpu(0, load), gpu(10, 1.0), gpu(2, 2.0)])
    usage = read_gpu_usage(run_path, 2)
    assert usage.times == [101.0, 103.0]
    assert list(usage.gpus) == ["cuda:0", "cuda:2", "cuda:10"]
    assert usage.gpus["cuda:0"].load_percent == [20.0, 50.0]
    assert usage.gpus["cuda:0"].power_w == [None, None]


def test_a_gpu_added_later_and_a_truncated_line_are_handled(run_path: Path):
    append_usage(run_path, 1.0, [gpu(0, 5.0)])
    with (run_path / "studio" / "gpu_usage.jsonl").open("a") as file:
        file.write('[2.0,{"cuda:0":[9\n')
    append_usage(run_path, 3.0, [gpu(0, 7.0), gpu(1, 8.0)])
    usage = read_gpu_usage(run_path, 10)
    assert usage.times == [1.0, 3.0]
    assert usage.gpus["cuda:0"].load_percent == [5.0, 7.0]
    assert usage.gpus["cuda:1"].load_percent == [None, 8.0]


def test_records_of_earlier_versions_are_read(run_path: Path):
    (run_path / "studio" / "cards.jsonl").write_text('[5.0,{"cuda:0":[97,100,60,null]}]\n')
    assert read_gpu_usage(run_path, 10).gpus["cuda:0"].load_percent == [97.0]


@pytest.mark.slow
def test_the_studio_records_the_gpu_of_a_running_run(
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
    body = {"name": "on-a-gpu", "config": tiny_config(limits={"max_steps": 100_000}), "devices": ["cuda:0"]}
    studio.post("/api/flow/train/start", body)
    usage = wait_for(lambda: (found := studio.get("/api/runs/on-a-gpu/gpu-usage"))["times"] and found)
    assert list(usage["gpus"]) == ["cuda:0"]
    assert usage["gpus"]["cuda:0"]["load_percent"][0] == 97
    assert usage["gpus"]["cuda:0"]["memory_used_mib"][0] == 70123
    studio.post("/api/runs/on-a-gpu/kill")
    studio.wait("on-a-gpu")
