"""Imports go down only, each third-party package is used in one place, and imports are declared."""

import ast
import re
import sys
import tomllib
from collections.abc import Mapping
from functools import cache
from importlib import metadata
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


def test_every_package_has_its_layer():
    package = ROOT / "src" / "flowloom"
    packages = {
        path.stem for path in package.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    layers = next(contract["layers"] for contract in contracts() if contract["type"] == "layers")
    named = {name.strip().removeprefix("flowloom.") for layer in layers for name in re.split("[:|]", layer)}
    assert packages - {"__init__"} <= named


ASSETS = "demo/make/"  # scripts that generated the demo's files; nothing imports them
ENTRIES = {
    "aim": "loggers/",
    "bitsandbytes": ("models/", "optimizers/"),
    "diffusers": "models/",
    "fastapi": "server/",
    "huggingface_hub": "storage/hub",
    "lycoris": "models/adapters/",
    "onnxruntime": "tasks/tagging/",
    "orjson": ("data/", "datasets/"),
    "pyarrow": "datasets/build/arrow.py",
    "peft": "models/adapters/",
    "psutil": ("server/", "launchers/local.py"),
    "safetensors": "models/",
    "starlette": "server/",
    "tensorboard": "loggers/",
    "torchao": ("models/", "optimizers/"),
    "transformers": "models/",
    "uvicorn": "server/",
    "wandb": "loggers/",
}


def imported(source: str) -> set[str]:
    """Top-level names of the packages that a module imports, nested imports too."""
    nodes = list(ast.walk(ast.parse(source)))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    named = {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom) and not node.level}
    return {name.split(".")[0] for name in plain | named}


def test_each_third_party_package_is_used_in_one_place():
    package = ROOT / "src" / "flowloom"
    strays = [
        f"{name} in {path.relative_to(package)}"
        for path in package.rglob("*.py")
        for name in imported(path.read_text()) & ENTRIES.keys()
        if not (place := path.relative_to(package).as_posix()).startswith(ENTRIES[name])
        and not place.startswith(ASSETS)
    ]
    assert not strays


def test_the_check_of_imports_sees_nested_ones():
    assert imported("def f():\n    from wandb.sdk import x\n    import torch.nn\n") == {"wandb", "torch"}


def canonical(name: str) -> str:
    return re.split(r"[^\w.-]", name, maxsplit=1)[0].lower().replace("_", "-")


def test_imports_are_declared_dependencies():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [name for group in project["optional-dependencies"].values() for name in group]
    declared = {canonical(name) for name in [*project["dependencies"], *extras]}
    sources = (ROOT / "src" / "flowloom").rglob("*.py")
    names = {name for path in sources for name in imported(path.read_text())}
    foreign = names - set(sys.stdlib_module_names) - {"flowloom", "pydantic_core", ""}
    assert not [name for name in foreign if not distributions(name) & declared]


def distributions(module: str) -> set[str]:
    """Distributions that install `module`; its own name if it is optional and not installed."""
    found = providers().get(module, [module])
    return {canonical(name) for name in found}


@cache
def providers() -> Mapping[str, list[str]]:
    return metadata.packages_distributions()
