"""`./loom` names missing requirements with a hint, and sets up only when necessary."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHELL_TOOLS = re.findall(r"\w+", "sh dirname uname df awk cksum cat sed grep tail head date rm mkdir find")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The files of a checkout that set-up reads, nothing set up, and a separate PATH in `bin`."""
    folder = tmp_path / "checkout"
    (folder / "bin").mkdir(parents=True)
    for name in ["loom", "requirements.lock", "pyproject.toml"]:
        shutil.copy(ROOT / name, folder)
    for tool in SHELL_TOOLS:
        (folder / "bin" / tool).symlink_to(shutil.which(tool) or "/nowhere")
    return folder


def loom(checkout: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": str(checkout / "bin"), "HOME": str(checkout)}
    command = [str(checkout / "bin" / "sh"), str(checkout / "loom"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def write_command(path: Path, body: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def pretend_set_up(checkout: Path) -> None:
    """An environment as after set-up, with this Python and a flowloom that echoes its arguments."""
    write_command(checkout / ".venv/bin/python", f'exec "{sys.executable}" "$@"')
    write_command(checkout / ".venv/bin/flowloom", 'echo "flowloom $*"')
    version = subprocess.run([sys.executable, "-V"], capture_output=True, text=True, check=True).stdout
    sums = subprocess.run(["cksum", "requirements.lock", "pyproject.toml"], cwd=checkout, capture_output=True,
                          text=True, check=True).stdout  # fmt: skip
    (checkout / ".venv/stamp").write_text(f"{version}{checkout}\n{sums}")


def test_without_python_it_says_what_to_install(checkout: Path):
    done = loom(checkout, "demo")
    assert done.returncode == 2
    assert "no Python from 3.11 to 3.14" in done.stderr
    assert "apt install python3" in done.stderr


def test_a_python_that_is_too_old_is_named(checkout: Path):
    write_command(checkout / "bin/python3", '[ "$1" = -V ] && echo "Python 3.10.13" || exit 1')
    done = loom(checkout, "demo")
    assert done.returncode == 2
    assert "Python 3.10.13" in done.stderr


def test_a_machine_without_builds_of_pytorch_is_refused(checkout: Path):
    write_command(checkout / "bin/uname", "echo Minix")
    done = loom(checkout, "demo")
    assert done.returncode == 2
    assert "WSL" in done.stderr


def test_a_full_disk_is_named_before_anything_is_downloaded(checkout: Path):
    write_command(checkout / "bin/df", 'printf "head\\nfs 100 50 1048576 50%% /\\n"')
    done = loom(checkout, "demo")
    assert done.returncode == 2
    assert "1 GiB of disk are free" in done.stderr
    assert not (checkout / ".venv").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_named(checkout: Path):
    checkout.chmod(0o555)
    done = loom(checkout, "demo")
    checkout.chmod(0o755)
    assert done.returncode == 2
    assert "cannot be written" in done.stderr


def test_a_failing_step_shows_its_output_and_a_hint(checkout: Path):
    write_command(
        checkout / "bin/python3",
        'case "$*" in -V) echo Python 3.12.0;; -c*) ;; *) echo ensurepip is not available; exit 1;; esac',
    )
    done = loom(checkout, "demo")
    assert done.returncode == 2
    assert "| ensurepip is not available" in done.stderr
    assert "apt install python3-venv" in done.stderr
    assert not (checkout / ".venv/stamp").exists()


PIP = """case "$*" in
-V) echo Python 3.12.0;;
*) printf 'Collecting wandb-core==0.25 (from x)\n  Downloading wandb_core-0.25-py3-none-any.whl (12.5 MB)\n'
   printf 'Processing /x/mpmath-1.3.0-py3-none-any.whl\n'; sleep "${SLOW:-0}";;
esac"""
"""A Python whose pip is slow and prints its progress."""


@pytest.mark.slow
@pytest.mark.parametrize("shell", ["sh", "dash", "bash"])
def test_a_long_step_shows_packages_megabytes_and_seconds(checkout: Path, shell: str):
    """Every fifteen seconds without a terminal, and not after the step has ended."""
    (checkout / "bin" / "sleep").symlink_to(shutil.which("sleep") or "/nowhere")
    if (found := shutil.which(shell)) is None:
        pytest.skip(f"there is no {shell}")
    write_command(checkout / "bin/python3", PIP)
    environment = {"PATH": str(checkout / "bin"), "HOME": str(checkout), "SLOW": "18"}
    script = (checkout / "loom").read_text()
    functions = script[: script.index("verb=${1:-}")]
    one_step = "mkdir -p $venv; : >$log\nstep 'some packages' python3 pip\n"
    (checkout / "one-step").write_text(functions + one_step)
    done = subprocess.run(
        [found, str(checkout / "one-step")], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    first, second, *rest = done.stderr.splitlines()
    assert first == "  some packages ... "
    assert re.fullmatch(r"    1\d s: 2 packages, 12 MB downloaded, mpmath \d\d s", second)
    assert rest == []


def test_once_set_up_it_only_passes_the_arguments_on(checkout: Path):
    pretend_set_up(checkout)
    done = loom(checkout, "train", "a.json", "--dry-run")
    assert (done.returncode, done.stdout, done.stderr) == (0, "flowloom train a.json --dry-run\n", "")


@pytest.mark.parametrize("change", ["requirements.lock", "pyproject.toml", "folder", "python"])
def test_a_change_of_its_inputs_sets_up_again(checkout: Path, change: str):
    pretend_set_up(checkout)
    if change == "folder":
        checkout = checkout.rename(checkout.with_name("moved"))
    elif change == "python":
        write_command(checkout / ".venv/bin/python", "exit 127")
    else:
        with (checkout / change).open("a") as file:
            file.write("\n# a change\n")
    done = loom(checkout, "train")
    assert done.stdout == ""
    assert "no Python from 3.11 to 3.14" in done.stderr


def canonical(requirement: str) -> str:
    return re.split(r"[^\w.-]", requirement, maxsplit=1)[0].lower().replace("_", "-")


def test_every_direct_dependency_is_pinned():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    optional = [
        name
        for extra, names in extras.items()
        if extra not in {"aim", "all", "bench", "deepspeed"}
        for name in names
    ]
    direct = [*project["dependencies"], *optional]
    pins = (ROOT / "requirements.lock").read_text().splitlines()
    assert pins[0] == "torch==2.13.0"
    assert not {canonical(name) for name in direct} - {canonical(pin) for pin in pins}
    assert not [pin for pin in pins if "==" not in pin or "+" in pin or "@" in pin]
