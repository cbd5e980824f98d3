"""Install sd-scripts: a clone with its own Python environment, because its pins clash with ours."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from flowloom.errors import RunError
from flowloom.trainers.checkouts import Checkout, add_checkout

SOURCE = "https://github.com/kohya-ss/sd-scripts"


def install(ref: str | None, say: Callable[[str], None]) -> Checkout:
    """Clone sd-scripts at `ref` and fill its environment; called again, it continues.

    Raises:
        RunError: a step failed.
    """
    data = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    path = data / "flowloom" / "sd-scripts"
    path.parent.mkdir(parents=True, exist_ok=True)
    if not (path / ".git").is_dir():
        _do(say, f"clone {SOURCE}", ["git", "clone", SOURCE, str(path)], path.parent)
    if ref:
        _do(say, "fetch", ["git", "fetch", "origin", "--tags"], path)
        _do(say, f"check out {ref}", ["git", "checkout", "--detach", ref], path)
    python = path / ".venv" / "bin" / "python"
    if not python.is_file():
        _do(say, "make its environment", [sys.executable, "-m", "venv", str(path / ".venv")], path)
    pip = [str(python), "-m", "pip", "install"]
    # Its requirements leave out torch, whose build depends on the machine.
    _do(say, "install torch", [*pip, "torch", "torchvision"], path)
    _do(say, "install its requirements", [*pip, "-r", "requirements.txt", "tensorboard"], path)
    return add_checkout("kohya", path, python)


def _do(say: Callable[[str], None], step: str, arguments: Sequence[str], folder: Path) -> None:
    say(step)
    try:
        done = subprocess.run(arguments, cwd=folder, check=False)
    except FileNotFoundError as error:
        raise RunError(
            f"{step}: {arguments[0]} is not installed. Install it, then run this again."
        ) from error
    if done.returncode:
        raise RunError(f"{step}: failed, see above. Run this again to continue.")
