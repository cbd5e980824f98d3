"""Imports go down only: cli > demo > engine > data > spec > parts > flow | nn > errors."""

import tomllib
from pathlib import Path

from importlinter import cli

ROOT = Path(__file__).parents[2]


def contracts() -> list[dict]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]


def test_imports_keep_the_contracts():
    assert (
        cli.lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True)
        == cli.EXIT_STATUS_SUCCESS
    )


def test_every_room_has_its_layer():
    package = ROOT / "src" / "flowloom"
    rooms = {
        path.stem for path in package.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    layers = next(contract["layers"] for contract in contracts() if contract["type"] == "layers")
    named = {name.strip().removeprefix("flowloom.") for layer in layers for name in layer.split(":")}
    assert rooms - {"__init__"} <= named
