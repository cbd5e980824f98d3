"""The arguments that a script of sd-scripts takes, read from its own argparse without importing it."""

from __future__ import annotations

import ast
import difflib
import re
import shlex
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from flowloom.errors import Problem

OWNED = frozenset(
    {
        "config_file",
        "dataset_config",
        "huggingface_repo_id",
        "huggingface_token",
        "log_with",
        "logging_dir",
        "network_module",
        "output_config",
        "output_dir",
        "output_name",
        "reg_data_dir",
        "resume_from_huggingface",
        "resume",
        "sample_prompts",
        "train_data_dir",
        "wandb_api_key",
    }
)
"""Arguments that the studio sets, or that hold a secret."""
_PRESET = re.compile(r"[\w-]*")
"""Names of LyCORIS' presets; any other value is the path of a file."""
_OF_PATHS = re.compile(r"(^|_)(path|dir|folder|file|weights)s?$")
Known = dict[str, bool]
"""Names of arguments, with True if a value follows."""


@dataclass
class _Function:
    arguments: Known = field(default_factory=dict)
    calls: list[tuple[str | None, str]] = field(default_factory=list)
    """Module (None: the same) and function."""


def known_arguments(checkout: Path, script: str) -> Known:
    """Every argument that `setup_parser` of `script` adds, in the checkout; empty if that is missing."""
    path = checkout / script
    try:
        return dict(_known(checkout, script, path.stat().st_mtime_ns))
    except (OSError, SyntaxError, ValueError):
        return {}


@lru_cache(32)
def _known(checkout: Path, script: str, _changed: int) -> Known:
    modules = {path.stem: path for path in (*checkout.glob("*.py"), *checkout.glob("library/*.py"))}
    read: dict[str, dict[str, _Function]] = {}
    found: Known = {}
    queue, seen = [(Path(script).stem, "setup_parser")], set[tuple[str, str]]()
    while queue:
        module, name = queue.pop()
        if (module, name) in seen or module not in modules:
            continue
        seen.add((module, name))
        if module not in read:
            read[module] = _functions(modules[module])
        function = read[module].get(name)
        if function:
            found |= function.arguments
            queue += [(there or module, called) for there, called in function.calls]
    return found


def _functions(path: Path) -> dict[str, _Function]:
    """The functions of a module, and those it imports, by their names in it."""
    with warnings.catch_warnings():
        # Warnings about the regular expressions of other people's code.
        warnings.simplefilter("ignore")
        tree = ast.parse(path.read_text(encoding="utf-8"))
    found = {
        name.asname or name.name: _Function(calls=[(node.module.rpartition(".")[2], name.name)])
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module
        for name in node.names
    }
    own = {node.name: _read(node) for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    return found | own


def _read(function: ast.FunctionDef) -> _Function:
    found = _Function()
    for node in ast.walk(function):
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Attribute) and node.func.attr == "add_argument":
            found.arguments |= dict(_argument(node))
        elif isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name):
            found.calls.append((node.func.value.id, node.func.attr))
        elif isinstance(node.func, ast.Name):
            found.calls.append((None, node.func.id))
    return found


def _argument(call: ast.Call) -> Iterator[tuple[str, bool]]:
    action = next((word.value for word in call.keywords if word.arg == "action"), None)
    takes_value = not (isinstance(action, ast.Constant) and str(action.value).startswith("store_"))
    for word in call.args:
        if isinstance(word, ast.Constant) and isinstance(word.value, str) and word.value.startswith("--"):
            yield word.value[2:], takes_value


def path_in(argument: str) -> str:
    """The path in NAME=VALUE of network_args, such as LyCORIS' `preset=FILE`; empty if there is none."""
    name, _, value = argument.partition("=")
    is_file = name.strip() == "preset" and not _PRESET.fullmatch(value.strip())
    return value if is_file or "/" in value or value.startswith("~") or _OF_PATHS.search(name) else ""


def absolute_in(argument: str) -> str:
    """NAME=VALUE with its path absolute: sd-scripts runs in another folder than the studio."""
    path = path_in(argument)
    return f"{argument.removesuffix(path)}{Path(path).expanduser().absolute()}" if path else argument


def raw_problems(text: str, known: Known) -> Iterator[Problem]:
    """Problems with raw arguments."""
    try:
        arguments = shlex.split(text)
    except ValueError as error:
        yield Problem("raw_arguments", f"cannot be split into arguments: {error}.")
        return
    may_be_value = False
    for word in arguments:
        name = word.partition("=")[0].removeprefix("--")
        if "/" in word or "\\" in word or word.startswith("~"):
            yield Problem(
                "raw_arguments", f"{word!r} looks like a path: files and folders have their own keys."
            )
        if not word.startswith("--"):
            if not may_be_value:
                yield Problem(
                    "raw_arguments", f"{word!r} belongs to no argument: they begin with two dashes."
                )
            continue
        # If no argument is known, each may have a value.
        may_be_value = known.get(name, not known)
        if known and name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            meant = f" Did you mean --{close[0]}?" if close else ""
            yield Problem("raw_arguments", f"the script has no --{name}.{meant}")
        if name in OWNED:
            yield Problem("raw_arguments", f"--{name} has its own field, or is set by the studio.")
