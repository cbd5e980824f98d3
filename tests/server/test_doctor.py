"""Present and missing parts of the machine, by HTTP as by the command line."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import flowloom
from flowloom.engine.doctor import Finding, port_finding
from flowloom.server.serve import serving_at
from tests.server.conftest import Studio


@pytest.mark.slow
def test_the_studio_reports_what_its_machine_has_and_what_is_missing(
    studio_at: Callable[..., Studio], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLOWLOOM_TRAINERS", str(tmp_path / "none.json"))
    monkeypatch.setenv("HF_TOKEN", "hf_not-a-real-token")
    studio = studio_at().start()
    port = int(studio.url.rpartition(":")[2])
    answer = studio.http.get("/api/system/doctor", timeout=90)
    found = {one["name"]: one for one in answer.json()}
    assert found["torch"]["text"].startswith(torch.__version__)
    assert found["safetensors"]["is_ok"]
    assert "not installed" in found["kohya"]["text"]
    assert "HF_TOKEN" in found["secrets"]["text"]
    answering = Finding("port", f"{port}: a studio is running, flowloom {flowloom.__version__}")
    assert Finding(**found["port"]) == answering, "its own port, not the usual one"
    assert port_finding(port) == answering
    assert serving_at(studio.home) == (port, "127.0.0.1")
    assert "hf_not" not in answer.text
    assert studio.get("/api/system")["studio_memory_mib"] < 150, "torch stays out of the studio"


def test_a_port_is_free_or_used_by_another_program() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        port = other.getsockname()[1]
        # Bound, and it answers no request.
        found = port_finding(port)
        assert not found.is_ok
        assert "--port" in found.text
    assert port_finding(port) == Finding("port", f"{port} is free")
