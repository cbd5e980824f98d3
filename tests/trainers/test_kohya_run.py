"""Kohya's sd-scripts, the real ones, train a small SD 1.5 of random weights through the studio."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flowloom.models.weights import open_weights
from tests.fakes.sd_scripts import needs_sd_scripts, sd_home, sd_studio, small_config  # noqa: F401
from tests.server.conftest import Studio, wait_for

pytestmark = [pytest.mark.slow, needs_sd_scripts]


def of_kind(studio: Studio, run: str, kind: str) -> list[dict[str, Any]]:
    return [event for event in studio.events(run) if event["kind"] == kind]


def test_a_lora_is_trained_with_its_losses_rates_previews_and_files(
    sd_studio: Studio,  # noqa: F811
    sd_home: Path,  # noqa: F811
) -> None:
    config = small_config(sd_home)
    assert sd_studio.post("/api/kohya/config", {"config": config}) == {"is_valid": True, "problems": []}
    sd_studio.post("/api/kohya/train/start", {"name": "lora", "config": config})
    sd_studio.wait("lora", "finished")
    steps = of_kind(sd_studio, "lora", "step")
    assert [event["step"] for event in steps] == list(range(1, 11))
    assert all(0.1 < event["loss"] < 10 for event in steps)
    assert [event["lr"] for event in steps] == pytest.approx([1e-3 * (1 - i / 10) for i in range(1, 11)])
    assert [event["step"] for event in of_kind(sd_studio, "lora", "sampled")] == [4, 8]
    saved = of_kind(sd_studio, "lora", "saved")
    names = ["checkpoints/last-step00000006.safetensors", "checkpoints/last.safetensors"]
    assert [(event["step"], event["dir"]) for event in saved] == [(6, names[0]), (10, names[1])]
    (started,) = of_kind(sd_studio, "lora", "started")
    assert started["resumed_from"] is None
    folder = sd_studio.home / "runs" / "lora"
    assert any(name.startswith("lora_unet_") for name in open_weights(folder / names[1]))
    assert not of_kind(sd_studio, "lora", "warning")
    samples = sd_studio.get("/api/runs/lora/samples")["samples"]
    assert [(one["step"], one["prompt"], one["seed"]) for one in samples] == [
        (8, "a red picture", 42),
        (4, "a red picture", 42),
    ]
    assert samples[0]["settings"] == {"width": 64, "height": 64, "steps": 2}


def test_a_whole_network_is_trained_saved_and_resumed(
    sd_studio: Studio,  # noqa: F811
    sd_home: Path,  # noqa: F811
) -> None:
    config = small_config(
        sd_home,
        method="full",
        training={"max_train_steps": 30, "gradient_accumulation_steps": 2},
        saving={"save_every_n_steps": 1000, "save_precision": "float"},
    )
    sd_studio.post("/api/kohya/train/start", {"name": "whole", "config": config})
    wait_for(lambda: of_kind(sd_studio, "whole", "step"))
    sd_studio.post("/api/runs/whole/stop")
    sd_studio.wait("whole", "stopped")
    done = of_kind(sd_studio, "whole", "stopped")[0]["step"]
    assert done < 30
    (saved,) = of_kind(sd_studio, "whole", "saved")
    names = set(open_weights(sd_studio.home / "runs" / "whole" / saved["dir"]))
    assert any(name.startswith("model.diffusion_model.") for name in names)
    sd_studio.post("/api/runs/whole/resume", {})
    sd_studio.wait("whole", "finished")
    assert [event["step"] for event in of_kind(sd_studio, "whole", "step")] == list(range(1, 31))


def test_a_finished_run_continues_with_more_steps(
    sd_studio: Studio,  # noqa: F811
    sd_home: Path,  # noqa: F811
) -> None:
    config = small_config(sd_home, training={"max_train_steps": None, "max_train_epochs": 1})
    sd_studio.post("/api/kohya/train/start", {"name": "epochs", "config": config})
    sd_studio.wait("epochs", "finished")
    steps = of_kind(sd_studio, "epochs", "step")
    sd_studio.post("/api/runs/epochs/resume", {"changes": {"training": {"max_train_epochs": 2}}})
    sd_studio.wait("epochs", "queued", "running")
    sd_studio.wait("epochs", "finished")
    numbers = [event["step"] for event in of_kind(sd_studio, "epochs", "step")]
    assert numbers == list(range(1, 2 * len(steps) + 1))


def test_a_run_saves_generates_previews_and_stops_on_request_and_resumes(
    sd_studio: Studio,  # noqa: F811
    sd_home: Path,  # noqa: F811
) -> None:
    config = small_config(
        sd_home,
        training={"max_train_steps": 40},
        saving={"save_every_n_steps": 1000},
        sampling={"sample_every_n_steps": 1000},
    )
    sd_studio.post("/api/kohya/train/start", {"name": "asked", "config": config})
    wait_for(lambda: of_kind(sd_studio, "asked", "step"))
    sd_studio.post("/api/runs/asked/control", {"action": "sample"})
    wait_for(lambda: of_kind(sd_studio, "asked", "sampled"))
    sd_studio.post("/api/runs/asked/control", {"action": "checkpoint"})
    wait_for(lambda: of_kind(sd_studio, "asked", "saved"))
    sd_studio.post("/api/runs/asked/stop")
    sd_studio.wait("asked", "stopped")
    (sampled,) = of_kind(sd_studio, "asked", "sampled")
    first, last = of_kind(sd_studio, "asked", "saved")
    assert sampled["step"] <= first["step"] < last["step"] < 40
    done = of_kind(sd_studio, "asked", "stopped")[0]["step"]
    assert done == last["step"] == of_kind(sd_studio, "asked", "step")[-1]["step"]
    folder = sd_studio.home / "runs" / "asked" / "checkpoints"
    assert json.loads((folder / f"last-step{done:08d}-state" / "flowloom.json").read_text()) == {"step": done}

    sd_studio.post("/api/runs/asked/resume", {})
    sd_studio.wait("asked", "finished")
    steps = of_kind(sd_studio, "asked", "step")
    assert [event["step"] for event in steps] == list(range(1, 41)), "no step twice, none left out"
    assert steps[-1]["lr"] == pytest.approx(0), "by the schedule of the whole"
    assert steps[done]["lr"] == pytest.approx(1e-3 * (1 - (done + 1) / 40))
    assert [event["resumed_from"] for event in of_kind(sd_studio, "asked", "started")] == [None, done]
    assert (folder / f"last-from{done:08d}.safetensors").exists()
    assert max(event["step"] for event in of_kind(sd_studio, "asked", "progress")) <= 40
