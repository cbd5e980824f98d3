"""The real sd-scripts, where there is a checkout with its environment in `.venv`: FLOWLOOM_KOHYA=CHECKOUT.

Where that environment has no torchvision, what sd-scripts uses of it is torchvision_here, beside this file.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from PIL import Image

CHECKOUT = Path(os.environ.get("FLOWLOOM_KOHYA", ""))
PYTHON = CHECKOUT / ".venv" / "bin" / "python"
HERE = Path(__file__).parent
needs_sd_scripts = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not os.environ.get("FLOWLOOM_KOHYA"),
        reason="FLOWLOOM_KOHYA names no checkout of sd-scripts with its environment in .venv",
    ),
]


def prepare(patch: pytest.MonkeyPatch) -> None:
    """Let what is started from here run sd-scripts, without the hub."""
    patch.setenv("HF_HUB_OFFLINE", "1")
    look = [PYTHON, "-c", "import torchvision"]
    if subprocess.run(look, capture_output=True, check=False).returncode:
        patch.setenv("PYTHONPATH", str(HERE / "torchvision_here"), prepend=os.pathsep)


def paint_with_captions(folder: Path) -> None:
    """Four pictures in two shapes."""
    folder.mkdir()
    for i, colour in enumerate(["red", "green", "blue", "yellow"]):
        size = (64, 128 if i % 2 else 64)
        Image.new("RGB", size, colour).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"a {colour} picture")
