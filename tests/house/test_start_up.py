"""The schema and the command line start without PyTorch and other heavy packages."""

import subprocess
import sys
from pathlib import Path

import pytest

SRC = Path(__file__).parents[2] / "src"
LIGHT = [
    "flowloom.errors",
    "flowloom.cli.main",
    *sorted(
        ".".join(path.relative_to(SRC).with_suffix("").parts)
        for package in ("config", "run")
        for path in (SRC / "flowloom" / package).rglob("[!_]*.py")
    ),
]
HEAVY = {
    "torch",
    "numpy",
    "scipy",
    "transformers",
    "diffusers",
    "peft",
    "PIL",
    "pyvips",
    "wandb",
    "tensorboard",
}


def heavy_modules_after(statement: str) -> set[str]:
    """Names of heavy packages loaded in a fresh interpreter that ran `statement`."""
    code = f"import sys\n{statement}\nsys.stdout.write(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return HEAVY & set(done.stdout.split())


@pytest.mark.parametrize("module", LIGHT)
def test_the_schema_and_the_command_line_import_nothing_heavy(module: str):
    assert heavy_modules_after(f"import {module}") == set()


def test_the_check_sees_a_heavy_import():
    assert heavy_modules_after("import numpy") == {"numpy"}
