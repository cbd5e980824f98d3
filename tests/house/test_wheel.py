"""The wheel beside a user's own torch: nothing is replaced, it starts, and a missing extra is one line."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import venv
from importlib import metadata
from pathlib import Path

import pytest

import flowloom
from tests.house.test_packaging import public_api

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
OWN_TORCH = "2.9.1+rocm6.4"
NOT_THERE = ("aim", "flowloom", "onnxruntime", "openmoji", "tensorboard", "torch-", "wandb", "__editable__")
"""Starts of names in site-packages that the user's environment does not have: extras, and this checkout."""


def pip(*arguments: str | Path) -> str:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, built from a copy: setuptools leaves files in the source folder."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE", "THIRD_PARTY.md"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    pip("wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation", "-w", folder / "dist", folder)
    (path,) = (folder / "dist").iterdir()
    return path


@pytest.fixture(scope="module")
def users_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with everything but the extras, whose torch is the user's own build."""
    folder = tmp_path_factory.mktemp("user") / "venv"
    venv.create(folder, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    torch = metadata.distribution("torch")
    for path in Path(str(torch.locate_file(""))).iterdir():
        if not path.name.startswith(NOT_THERE) and path.suffix != ".pth":
            (site / path.name).symlink_to(path)
    info = site / f"torch-{OWN_TORCH}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: torch\nVersion: {OWN_TORCH}\n")
    (info / "RECORD").write_text("")
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def report(wheel: Path, users_python: Path) -> dict:
    """pip's report of what it would install for the wheel, which is then installed; no index is used."""
    install = ("--python", users_python, "install", "--quiet", "--no-index")
    dry_run = pip(*install, "--dry-run", "--report", "-", wheel)
    pip(*install, "--no-deps", wheel)
    return json.loads(dry_run)


def run(users_python: Path, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(cwd), "OMP_NUM_THREADS": "1"}
    command = [str(users_python.parent / arguments[0]), *arguments[1:]]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def test_torch_and_all_other_packages_are_kept(report: dict):
    assert [package["metadata"]["name"] for package in report["install"]] == ["flowloom"]


def test_the_command_starts(report: dict, users_python: Path, tmp_path: Path):
    done = run(users_python, tmp_path, "flowloom", "--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert flowloom.__version__ in done.stdout


def test_doctor_finds_the_users_torch_and_no_extra(report: dict, users_python: Path, tmp_path: Path):
    done = run(users_python, tmp_path, "flowloom", "doctor")
    assert "cannot be imported" not in done.stdout + done.stderr
    assert "wandb -, tensorboard -, aim -" in done.stdout


def test_the_public_api_can_be_imported(report: dict, users_python: Path, tmp_path: Path):
    lines = [f"from {module} import {', '.join(names)}" for module, names in public_api().items()]
    done = run(users_python, tmp_path, "python", "-c", "\n".join(lines))
    assert (done.returncode, done.stderr) == (0, "")


def test_the_demo_names_its_extra_in_one_line(report: dict, users_python: Path, tmp_path: Path):
    done = run(users_python, tmp_path, "flowloom", "demo", "--minutes", "1")
    assert done.returncode != 0
    assert "pip install 'flowloom[demo]'" in done.stderr
    assert len(done.stderr.splitlines()) == 1
