"""The example of the API works against a real studio."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flowloom.models.weights import open_weights
from tests.fakes.onnx_tagger import write_tagger
from tests.fakes.sd_scripts import needs_sd_scripts, sd_home, sd_studio, small_config  # noqa: F401
from tests.server.conftest import Studio
from tests.tasks.tagging.conftest import BLUE, GREEN, RED, paint

TOUR = Path(__file__).parents[2] / "examples" / "api_tour.py"


def take_tour(folder: Path, *arguments: str) -> str:
    """Return the output of the tour with the images in `folder/images`."""
    done = subprocess.run(
        [sys.executable, str(TOUR), str(folder / "images"), *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_tour_goes_from_images_to_a_lora(
    studio_at: Callable[..., Studio], tiny_config: Callable[..., dict[str, Any]], tmp_path: Path
):
    write_tagger(tmp_path / "taggers" / "tiny")
    paint(tmp_path / "images", **{f"é {i}": (RED, GREEN, BLUE)[i % 3] for i in range(9)})
    studio = studio_at("home", "--root", f"taggers={tmp_path / 'taggers'}").start()
    config = tiny_config(
        lora={"rank": 2, "alpha": 2},
        inference={"inference_every": 30, "steps": 2, "prompts": ["red"], "image_dim": [64, 64]},
    )
    (tmp_path / "model.json").write_text(json.dumps(config))
    arguments = ["--url", studio.url, "--config", str(tmp_path / "model.json"), "--steps", "60"]
    output = take_tour(tmp_path, *arguments, "--tagger-path", str(tmp_path / "taggers" / "tiny"))
    assert re.search(r"tour is stopped at step \d\d$", output, re.MULTILINE)
    assert "tour is finished at step 60" in output
    steps = [event["step"] for event in studio.events("tour") if event["kind"] == "step"]
    assert steps == list(range(1, 61)), "stopped and resumed, no step twice"
    assert len(list((studio.home / "data" / "tour").glob("*.txt"))) == 9
    assert len((studio.home / "data" / "tour.jsonl").read_text().splitlines()) == 9
    (lora,) = (tmp_path / "tour" / "tour-comfy").rglob("*.safetensors")
    assert all(name.startswith("diffusion_model.") for name in open_weights(lora))
    assert list((tmp_path / "tour").rglob("*.png"))


def kohya_tour(studio: Studio, folder: Path, config: dict[str, Any]) -> str:
    """Return the output of the tour with Kohya alone."""
    paint(folder / "images", one=RED, two=GREEN)
    for name in ("one", "two"):
        (folder / "images" / f"{name}.txt").write_text(f"image {name}")
    (folder / "kohya.json").write_text(json.dumps(config))
    return take_tour(
        folder, "--url", studio.url, "--kohya", str(folder / "kohya.json"), "--steps", "12", "--name", "trip"
    )


def test_the_tour_prints_the_files_of_kohya_where_it_is_not_installed(
    studio_at: Callable[..., Studio], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("FLOWLOOM_TRAINERS", str(tmp_path / "none.json"))
    studio = studio_at().start()
    output = kohya_tour(studio, tmp_path, {"family": "chroma", "sampling": {"prompts": ["a fox"]}})
    assert "dry run" in output
    parts = output.split("--- ")
    files = {text.partition("\n")[0]: text.partition("\n")[2] for text in parts[1:]}
    arguments = tomllib.loads(files["config.toml"])["arguments"]
    assert (arguments["max_train_steps"], arguments["model_type"]) == (12, "chroma")
    ((subset,),) = (dataset["subsets"] for dataset in tomllib.loads(files["dataset.toml"])["datasets"])
    assert subset["image_dir"] == str(studio.home / "data" / "trip")
    assert files["prompts.txt"].startswith("a fox --")
    assert studio.get("/api/runs")["runs"] == []


@pytest.mark.slow
@needs_sd_scripts
def test_the_tour_trains_with_kohya_where_it_is_installed(
    sd_home: Path,  # noqa: F811
    sd_studio: Studio,  # noqa: F811
    tmp_path: Path,
):
    output = kohya_tour(sd_studio, tmp_path, small_config(sd_home))
    assert "trip-kohya is finished at step 12" in output
    assert re.search(r"trip-kohya is stopped at step \d+$", output, re.MULTILINE)
    assert list((tmp_path / "tour" / "trip-kohya").glob("*.safetensors"))
    assert list((tmp_path / "tour").rglob("*.png"))
