"""Kohya's sd-scripts, the real ones, train a small SD 1.5 of random weights through the studio.

Needs a checkout of sd-scripts with its environment in `.venv`: FLOWLOOM_KOHYA=CHECKOUT. Of the copy that is
used one line differs, the widths of its U-Net; and where its environment has no torchvision, what it uses of
that is tests/stand_ins/torchvision_here. FLOWLOOM_KOHYA_WIDTH=320 leaves that line as it is: a U-Net of the
released size, which takes 20 GB and some minutes.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from flowloom.parts.families.weights import open_weights
from flowloom.trainers.checkouts import name_checkout
from tests.server.conftest import Studio, end_runs, wait_for

CHECKOUT = os.environ.get("FLOWLOOM_KOHYA", "")
WIDTH = int(os.environ.get("FLOWLOOM_KOHYA_WIDTH", "32"))
STAND_INS = Path(__file__).parents[1] / "stand_ins"
WIDTHS = "(320, 640, 1280, 1280)"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not CHECKOUT, reason="FLOWLOOM_KOHYA names no checkout of sd-scripts (with its .venv inside)"
    ),
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a narrow copy of sd-scripts, a model for it, and pictures."""
    folder = tmp_path_factory.mktemp("kohya")
    kept = shutil.ignore_patterns(".*", "images", "docs", "tests")
    shutil.copytree(CHECKOUT, folder / "sd-scripts", ignore=kept)
    unet = folder / "sd-scripts" / "library" / "original_unet.py"
    assert WIDTHS in unet.read_text()
    unet.write_text(unet.read_text().replace(WIDTHS, str((WIDTH, 2 * WIDTH, 4 * WIDTH, 4 * WIDTH))))
    python = Path(CHECKOUT) / ".venv" / "bin" / "python"
    subprocess.run([python, STAND_INS / "sd15.py", folder, str(WIDTH)], check=True, capture_output=True)
    (folder / "pictures").mkdir()
    for i, colour in enumerate(["red", "green", "blue", "yellow"]):
        size = (64, 128 if i % 2 else 64)
        Image.new("RGB", size, colour).save(folder / "pictures" / f"{i}.png")
        (folder / "pictures" / f"{i}.txt").write_text(f"a {colour} picture")
    return folder


@pytest.fixture(scope="module")
def studio(home: Path) -> Iterator[Studio]:
    """A studio that knows the checkout."""
    python = Path(CHECKOUT) / ".venv" / "bin" / "python"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLOWLOOM_TRAINERS", str(home / "trainers.json"))
        patch.setenv("HF_HUB_OFFLINE", "1")
        look = [python, "-c", "import torchvision"]
        if subprocess.run(look, capture_output=True, check=False).returncode:
            patch.setenv("PYTHONPATH", str(STAND_INS / "torchvision_here"), prepend=os.pathsep)
        name_checkout("kohya", home / "sd-scripts", python)
        studio = Studio(home / "studio", "--root", f"kohya={home}").start()
        yield studio
        end_runs(studio.home)
        studio.end(signal.SIGKILL)


@pytest.fixture
def make_config(home: Path) -> Callable[..., dict[str, Any]]:
    """`make_config(training={...})`: a small run, merged over what all have."""
    dataset = {"resolution": 64, "min_bucket_reso": 64, "max_bucket_reso": 128, "bucket_no_upscale": False}
    base: dict[str, Any] = {
        "family": "sd15",
        "model": {
            "pretrained_model_name_or_path": str(home / "model"),
            "tokenizer_cache_dir": str(home / "tokenizers"),
        },
        "datasets": [dataset | {"subsets": [{"image_dir": str(home / "pictures")}]}],
        "network": {"network_dim": 2, "network_alpha": 2},
        "training": {
            "max_train_steps": 10,
            "learning_rate": 1e-3,
            "optimizer_type": "AdamW",
            "lr_scheduler": "linear",
            "lr_warmup_steps": 0,
            "mixed_precision": "no",
            "max_data_loader_n_workers": 0,
        },
        "sampling": {
            "prompts": ["a red picture"],
            "width": 64,
            "height": 64,
            "steps": 2,
            "sample_every_n_steps": 4,
        },
        "saving": {"save_every_n_steps": 6},
    }

    def make(**sections: Any) -> dict[str, Any]:
        merged = {
            name: base.get(name, {}) | more if isinstance(more, dict) else more
            for name, more in sections.items()
        }
        return base | merged

    return make


def of_kind(studio: Studio, run: str, kind: str) -> list[dict[str, Any]]:
    return [event for event in studio.events(run) if event["kind"] == kind]


def test_a_lora_is_trained_with_its_losses_rates_pictures_and_files(
    studio: Studio, make_config: Callable[..., dict[str, Any]]
) -> None:
    config = make_config()
    assert studio.post("/api/kohya/config", {"config": config}) == {"is_valid": True, "problems": []}
    studio.post("/api/kohya/train/start", {"name": "lora", "config": config})
    studio.wait("lora", "finished")
    steps = of_kind(studio, "lora", "step")
    assert [event["step"] for event in steps] == list(range(1, 11))
    assert all(0.1 < event["loss"] < 10 for event in steps)
    assert [event["lr"] for event in steps] == pytest.approx([1e-3 * (1 - i / 10) for i in range(1, 11)])
    assert [event["step"] for event in of_kind(studio, "lora", "sampled")] == [4, 8]
    saved = of_kind(studio, "lora", "saved")
    names = ["checkpoints/last-step00000006.safetensors", "checkpoints/last.safetensors"]
    assert [(event["step"], event["dir"]) for event in saved] == [(6, names[0]), (10, names[1])]
    (started,) = of_kind(studio, "lora", "started")
    assert started["resumed_from"] is None
    folder = studio.home / "runs" / "lora"
    assert any(name.startswith("lora_unet_") for name in open_weights(folder / names[1]))
    assert not of_kind(studio, "lora", "warning")
    samples = studio.get("/api/runs/lora/samples")["samples"]
    assert len(samples) == 2


def test_it_saves_draws_and_stops_when_asked_and_goes_on_where_it_was(
    studio: Studio, make_config: Callable[..., dict[str, Any]]
) -> None:
    config = make_config(
        training=make_config()["training"] | {"max_train_steps": 40},
        saving={"save_every_n_steps": 1000},
        sampling=make_config()["sampling"] | {"sample_every_n_steps": 1000},
    )
    studio.post("/api/kohya/train/start", {"name": "asked", "config": config})
    wait_for(lambda: of_kind(studio, "asked", "step"))
    studio.post("/api/runs/asked/ask/sample")
    wait_for(lambda: of_kind(studio, "asked", "sampled"))
    studio.post("/api/runs/asked/ask/checkpoint")
    wait_for(lambda: of_kind(studio, "asked", "saved"))
    studio.post("/api/runs/asked/stop")
    studio.wait("asked", "stopped")
    (sampled,) = of_kind(studio, "asked", "sampled")
    first, last = of_kind(studio, "asked", "saved")
    assert sampled["step"] <= first["step"] < last["step"] < 40
    done = of_kind(studio, "asked", "stopped")[0]["step"]
    assert done == last["step"] == of_kind(studio, "asked", "step")[-1]["step"]
    folder = studio.home / "runs" / "asked" / "checkpoints"
    assert json.loads((folder / f"last-step{done:08d}-state" / "flowloom.json").read_text()) == {"step": done}

    studio.post("/api/runs/asked/resume", {})
    studio.wait("asked", "finished")
    steps = of_kind(studio, "asked", "step")
    assert [event["step"] for event in steps] == list(range(1, 41)), "no step twice, none left out"
    assert steps[-1]["lr"] == pytest.approx(0), "by the schedule of the whole"
    assert steps[done]["lr"] == pytest.approx(1e-3 * (1 - (done + 1) / 40))
    assert [event["resumed_from"] for event in of_kind(studio, "asked", "started")] == [None, done]
    assert (folder / f"last-from{done:08d}.safetensors").exists()
    assert max(event["step"] for event in of_kind(studio, "asked", "progress")) <= 40
