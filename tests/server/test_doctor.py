"""What the machine has and lacks, told by HTTP as the command line tells it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.server.conftest import Studio


@pytest.mark.slow
def test_the_studio_tells_what_its_machine_has_and_lacks(
    studio_at: Callable[..., Studio], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLOWLOOM_TRAINERS", str(tmp_path / "none.json"))
    monkeypatch.setenv("HF_TOKEN", "hf_not-a-real-token")
    studio = studio_at().start()
    answer = studio.http.get("/api/system/doctor", timeout=90)
    found = {one["name"]: one for one in answer.json()}
    assert found["torch"]["text"].startswith(torch.__version__)
    assert found["safetensors"]["is_well"]
    assert "not installed" in found["kohya"]["text"]
    assert "HF_TOKEN" in found["secrets"]["text"]
    assert "hf_not" not in answer.text
    assert studio.get("/api/system")["studio_memory_mib"] < 150, "torch stays out of the studio"
