"""The real sd-scripts, where there is a checkout with its environment in `.venv`: FLOWLOOM_KOHYA=CHECKOUT.

Where that environment has no torchvision, torchvision_here has the parts of it that sd-scripts uses.
Of the copy that trains one line differs, the widths of its U-Net, which are constants there.
FLOWLOOM_KOHYA_WIDTH=320 leaves that line unchanged: a U-Net of the released size, which takes gigabytes.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from flowloom.trainers.checkouts import add_checkout
from tests.server.conftest import Studio, end_runs

CHECKOUT = Path(os.environ.get("FLOWLOOM_KOHYA", ""))
PYTHON = CHECKOUT / ".venv" / "bin" / "python"
HERE = Path(__file__).parent
WIDTH = int(os.environ.get("FLOWLOOM_KOHYA_WIDTH", "32"))
WIDTHS = "(320, 640, 1280, 1280)"
needs_sd_scripts = pytest.mark.skipif(
    not os.environ.get("FLOWLOOM_KOHYA"),
    reason="FLOWLOOM_KOHYA names no checkout of sd-scripts with its environment in .venv",
)


def prepare(patch: pytest.MonkeyPatch) -> None:
    """Let what is started from here run sd-scripts, without the hub."""
    patch.setenv("HF_HUB_OFFLINE", "1")
    look = [PYTHON, "-c", "import torchvision"]
    if subprocess.run(look, capture_output=True, check=False).returncode:
        patch.setenv("PYTHONPATH", str(HERE / "torchvision_here"), prepend=os.pathsep)


def paint_with_captions(folder: Path) -> None:
    """Four images in two shapes."""
    folder.mkdir()
    for i, colour in enumerate(["red", "green", "blue", "yellow"]):
        size = (64, 128 if i % 2 else 64)
        Image.new("RGB", size, colour).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"a {colour} picture")


@pytest.fixture(scope="module")
def sd_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a narrow copy of sd-scripts, an SD 1.5 for it, and images."""
    folder = tmp_path_factory.mktemp("kohya")
    kept = shutil.ignore_patterns(".*", "images", "docs", "tests")
    shutil.copytree(CHECKOUT, folder / "sd-scripts", ignore=kept)
    unet = folder / "sd-scripts" / "library" / "original_unet.py"
    assert WIDTHS in unet.read_text()
    unet.write_text(unet.read_text().replace(WIDTHS, str((WIDTH, 2 * WIDTH, 4 * WIDTH, 4 * WIDTH))))
    subprocess.run([PYTHON, HERE / "sd15.py", folder, str(WIDTH)], check=True, capture_output=True)
    paint_with_captions(folder / "pictures")
    return folder


@pytest.fixture(scope="module")
def sd_studio(sd_home: Path) -> Iterator[Studio]:
    """A studio that knows that copy, and may read that folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLOWLOOM_TRAINERS", str(sd_home / "trainers.json"))
        prepare(patch)
        add_checkout("kohya", sd_home / "sd-scripts", PYTHON)
        studio = Studio(sd_home / "studio", "--root", f"kohya={sd_home}").start()
        yield studio
        end_runs(studio.home)
        studio.end(signal.SIGKILL)


def small_config(home: Path, **sections: Any) -> dict[str, Any]:
    """Ten steps of a LoRA on `home`'s model and images; `sections` are merged over it, key by key."""
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
    return base | {
        name: base.get(name, {}) | more if isinstance(more, dict) else more for name, more in sections.items()
    }
