"""Scripts and packages that another trainer's checkout needs and does not have.

Import statements are read from its scripts; its Python only reports which modules it finds. Nothing is
imported.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Collection, Iterator
from functools import lru_cache
from pathlib import Path

import flowloom
from flowloom.errors import ConfigError
from flowloom.trainers.checkouts import Checkout, checkouts_of
from flowloom.trainers.flow_upstream.dataclasses import names_of_trainers, wrong_calls
from flowloom.trainers.kohya.families import FACTS

SECONDS_KNOWN = 30
PATIENCE_S = 20
"""Seconds for Python to start, perhaps from a slow disk."""
_LATER = {"kohya": {"bitsandbytes", "tensorboard"}}
"""Modules that a run configured by the studio imports later."""
_IMPORT = re.compile(r"^(?:import ([\w., ]+)|from ([\w.]+) import ([\w, ]+|\())", re.MULTILINE)
_CUDA = re.compile(r"torch\.cuda\b|\bnccl\b")
_FIND = """
import importlib.util, sys
print(*[name for name in sys.argv[1:] if importlib.util.find_spec(name) is None])
"""


_VERSIONS = """
import importlib.metadata, json, platform, sys
found = {"python": platform.python_version()}
for name in sys.argv[1:]:
    try:
        found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pass
print(json.dumps(found))
"""
_RECORDED = (
    "torch", "accelerate", "diffusers", "transformers", "safetensors", "bitsandbytes", "xformers",
    "lycoris-lora", "prodigyopt", "numpy",
)  # fmt: skip
"""Packages of its environment that can change its results."""


def versions_of(python: str, checkout: Path) -> dict[str, str]:
    """Versions of the studio and of another trainer's packages, and the revision of its checkout."""
    found = {"flowloom": flowloom.__version__}
    if revision := revision_of(checkout).removeprefix(" at "):
        found[checkout.name] = revision
    command = [python, "-c", _VERSIONS, *_RECORDED]
    try:
        done = subprocess.run(
            command, cwd=checkout, capture_output=True, text=True, check=False, timeout=PATIENCE_S
        )
        return found | json.loads(done.stdout)
    except (OSError, subprocess.TimeoutExpired, ValueError):
        return found


def states(trainer: str) -> list[tuple[Checkout | None, str, list[str]]]:
    """Each checkout of a trainer, its description and its missing packages; or one entry of None."""
    try:
        checkouts = checkouts_of(trainer)
    except ConfigError as error:
        return [(None, str(error), ["readable list of checkouts"])]
    if not checkouts:
        return [(None, f"not installed: flowloom trainers install {trainer}", [])]
    return [
        (each, f"{each.path}{revision_of(each.path)}, with {each.python}", missing_packages(trainer, each))
        for each in checkouts
    ]


def missing_packages(trainer: str, checkout: Checkout) -> list[str]:
    """Scripts and packages that a checkout needs and does not have; empty if it can train."""
    wanted = _kohyas_scripts() if trainer == "kohya" else names_of_trainers(checkout.path)
    names = [name if name.endswith(".py") else f"{name.replace('.', '/')}.py" for name in wanted]
    there = [name for name in names if (checkout.path / name).is_file()]
    if not there:
        return [f"scripts: {checkout.path} is not a complete checkout of it"]
    gone = sorted(set(names) - set(there))
    return [*gone, *_missing_of(trainer, checkout, there, _LATER.get(trainer, set()))]


def missing_packages_of_script(
    trainer: str, checkout: Checkout, script: Path, more: Collection[str] = ()
) -> tuple[str, ...]:
    """Missing packages of one script; cached for half a minute, as forms ask on every change."""
    if not script.is_file() or not script.is_relative_to(checkout.path):
        return ()
    name = script.relative_to(checkout.path).as_posix()
    turn = int(time.monotonic() // SECONDS_KNOWN)
    return _cached_missing(trainer, (checkout.path, checkout.python), name, frozenset(more), turn)


@lru_cache(32)
def _cached_missing(
    trainer: str, place: tuple[Path, Path], script: str, more: frozenset[str], _turn: int
) -> tuple[str, ...]:
    return tuple(_missing_of(trainer, Checkout(path=place[0], python=place[1]), [script], more))


def _missing_of(trainer: str, checkout: Checkout, scripts: list[str], more: Collection[str]) -> list[str]:
    """Missing modules, CUDA if the scripts need it, and errors that would end an import."""
    files, outside = _imports_of(checkout.path, scripts)
    missing = modules_not_found(checkout, sorted(outside | set(more)))
    if trainer != "flow-upstream":
        return missing  # sd-scripts trains on processors too, and its releases can be imported
    needs_cuda = any(_CUDA.search(_text(path)) for path in files)
    broken = [fault for path in sorted(files) for fault in wrong_calls(path, checkout.path)]
    return [*missing, *(_no_cuda(checkout, missing) if needs_cuda else []), *broken]


def _no_cuda(checkout: Checkout, missing: list[str]) -> Iterator[str]:
    """The problem of a script that would find no device and exit silently."""
    places = ("nvidia[0-9]*", "kfd", "dxg")
    if not any(next(Path("/dev").glob(place), None) for place in places):
        yield "CUDA device: this machine has none, and the script would exit at once"
        return
    torch = versions_of(str(checkout.python), checkout.path).get("torch", "")
    if "torch" not in missing and torch.endswith("+cpu"):
        yield f"torch with CUDA: its Python has {torch}"


def _kohyas_scripts() -> list[str]:
    scripts = {
        script for facts in FACTS.values() for script in (facts.lora_script, facts.full_script) if script
    }
    return sorted(scripts)


def modules_not_found(checkout: Checkout, modules: list[str]) -> list[str]:
    """Modules that the checkout's Python does not find, or the problem with that Python."""
    try:
        done = subprocess.run(
            [checkout.python, "-c", _FIND, *modules],
            cwd=checkout.path,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE_S,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return [f"working Python: {error}"]
    return done.stdout.split() if not done.returncode else [f"working Python: {done.stderr.strip()[-300:]}"]


def _imports_of(checkout: Path, scripts: list[str]) -> tuple[set[Path], set[str]]:
    """Files of the checkout that the scripts import on start, and external packages."""
    found: set[str] = set()
    pending, seen = [checkout / script for script in scripts], set[Path]()
    while pending:
        path = pending.pop()
        if path in seen:
            continue
        seen.add(path)
        for name in _imported(path, checkout):
            files = _inside(checkout, name)
            pending += files
            if not files:
                found.add(name.partition(".")[0])
    own = {path.name for path in checkout.iterdir() if path.is_dir()} | {path.stem for path in seen}
    return seen, {name for name in found - own - sys.stdlib_module_names if name}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def _imported(path: Path, checkout: Path) -> Iterator[str]:
    """Names that a module imports unconditionally: `a.b`, and `a.b.c` of `from a.b import c`."""
    for whole, origin, names in _IMPORT.findall(_text(path)):
        yield from (name.split()[0] for name in whole.split(",") if name.strip())
        if origin.startswith("."):
            origin = _absolute(origin, path, checkout)
        if origin:
            yield origin
            yield from (f"{origin}.{name.split()[0]}" for name in names.split(",") if name.strip(" ("))


def _absolute(origin: str, path: Path, checkout: Path) -> str:
    """The absolute name of the relative import `.b`; empty if it leaves the checkout."""
    name = origin.lstrip(".")
    up = len(origin) - len(name)
    folders = path.relative_to(checkout).parts[:-1]
    if up - 1 > len(folders):
        return ""
    return ".".join([*folders[: len(folders) - up + 1], *([name] if name else [])])


def _inside(checkout: Path, name: str) -> list[Path]:
    """Files of the checkout that a module name refers to."""
    place = checkout.joinpath(*name.split("."))
    return [path for path in (place.with_suffix(".py"), place / "__init__.py") if path.is_file()]


def revision_of(path: Path) -> str:
    """` at COMMIT` for a git checkout; otherwise empty."""
    if not (path / ".git").exists():
        return ""
    try:
        command = ["git", "-C", str(path), "rev-parse", "--short", "HEAD"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return f" at {done.stdout.strip()}" if not done.returncode and done.stdout else ""
