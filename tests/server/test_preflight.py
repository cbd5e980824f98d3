"""Every trainer is asked in the same way what a run will take, and answers, or says that it cannot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from flowloom.trainers import ALL
from tests.fakes.least_sd_scripts import (
    least_checkout,  # noqa: F401 -- a fixture
    let_it_take_everything,
)
from tests.server.conftest import Studio


def test_a_run_of_flow_is_checked_before_it_starts(
    one_studio: Studio, tiny_config: Callable[..., dict[str, Any]]
):
    report = one_studio.post("/api/flow/preflight", {"config": tiny_config(), "samples_per_s": 2.0}, 200)
    assert report["data"]["rows"] > 0
    assert report["time"]["samples_per_s"] == 2.0
    wrong = tiny_config(dataloader={"jsonl_metadata_path": "/etc/passwd"})
    assert one_studio.http.post("/api/flow/preflight", json={"config": wrong}).status_code == 422


def test_a_run_of_kohya_is_checked_in_the_same_form(least_checkout: Path, tmp_path: Path):  # noqa: F811
    let_it_take_everything(least_checkout, "train_network.py")
    image_dir, model = tmp_path / "pictures", tmp_path / "model.safetensors"
    image_dir.mkdir()
    for i in range(3):
        Image.new("RGB", (256 + 64 * i, 256)).save(image_dir / f"{i}.png")
    save_file({"model.diffusion_model.input_blocks.1.1.proj_in.weight": np.zeros((4, 4))}, str(model))
    studio = Studio(tmp_path / "home", "--root", f"here={tmp_path}").start()
    try:
        config = {
            "family": "sd15",
            "model": {"pretrained_model_name_or_path": str(model)},
            "datasets": [{"resolution": 256, "subsets": [{"image_dir": str(image_dir)}]}],
        }
        request = {"config": config, "samples_per_s": 2.0, "gpu_gib": 24}
        report = studio.post("/api/kohya/preflight", request, 200)
        assert [problem["where"] for problem in report["problems"]] == []
        assert report["can_run"]
        data = report["data"]
        assert (data["rows"], data["steps"], report["time"]["samples_per_s"]) == (3, 2000, 2.0)
        assert report["memory"]["fits"]
        assert report["disk"]["fits"]
        assert "empty caption" in report["hints"][0]
        strayed = {"config": config | {"model": {"pretrained_model_name_or_path": "/etc/passwd"}}}
        refused = studio.http.post("/api/kohya/preflight", json=strayed)
        assert refused.status_code == 422
        assert "outside the studio's folders" in refused.json()["errors"][0]["detail"]
    finally:
        studio.end()


@pytest.mark.parametrize("trainer", ALL.values(), ids=list(ALL))
def test_a_trainer_without_a_preflight_reports_it(one_studio: Studio, trainer: Any):
    has_preflight = {one["name"]: one["has_preflight"] for one in one_studio.get("/api/trainers")}
    assert has_preflight[trainer.name] == bool(trainer.preflight_command)
    answer = one_studio.http.post(f"/api/{trainer.name}/preflight", json={"config": {}})
    problem = answer.json()
    if trainer.preflight_command:
        assert (answer.status_code, problem["type"]) == (422, "urn:flowloom:invalid")
        assert problem["errors"]
    else:
        assert (answer.status_code, problem["type"]) == (404, "urn:flowloom:no-preflight")
        assert trainer.title in problem["detail"]
        assert "first steps" in problem["hint"]
