"""The example of the API does what it says, against a real studio."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flowloom.parts.families.weights import open_weights
from tests.server.conftest import Studio
from tests.stand_ins.onnx_tagger import write_tagger
from tests.tagging.conftest import BLUE, GREEN, RED, paint

TOUR = Path(__file__).parents[2] / "examples" / "api_tour.py"


@pytest.mark.slow
def test_the_tour_goes_from_pictures_to_a_lora(
    studio_at: Callable[..., Studio], tiny_config: Callable[..., dict[str, Any]], tmp_path: Path
):
    write_tagger(tmp_path / "taggers" / "tiny")
    paint(tmp_path / "pictures", **{f"é {i}": (RED, GREEN, BLUE)[i % 3] for i in range(9)})
    studio = studio_at("home", "--root", f"taggers={tmp_path / 'taggers'}").start()
    config = tiny_config(
        lora={"rank": 2, "alpha": 2},
        inference={"inference_every": 30, "steps": 2, "prompts": ["red"], "image_dim": [64, 64]},
    )
    (tmp_path / "model.json").write_text(json.dumps(config))
    words = [str(tmp_path / "pictures"), "--url", studio.url, "--config", str(tmp_path / "model.json")]
    words += ["--tagger-path", str(tmp_path / "taggers" / "tiny"), "--steps", "60"]
    done = subprocess.run(
        [sys.executable, str(TOUR), *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"tour is stopped at step \d\d$", done.stdout, re.MULTILINE)
    assert "tour is finished at step 60" in done.stdout
    steps = [event["step"] for event in studio.events("tour") if event["kind"] == "step"]
    assert steps == list(range(1, 61)), "stopped and resumed, and none twice"
    assert len(list((studio.home / "data" / "tour").glob("*.txt"))) == 9
    assert len((studio.home / "data" / "tour.jsonl").read_text().splitlines()) == 9
    (lora,) = (tmp_path / "tour" / "tour-comfy").rglob("*.safetensors")
    assert all(name.startswith("diffusion_model.") for name in open_weights(lora))
    assert list((tmp_path / "tour").rglob("*.png"))
