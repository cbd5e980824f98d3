"""The keys that a checkout of FLOW accepts, read from its dataclasses without running it.

FLOW builds `TrainingConfig(**json["training"])` and so on: a key too many or too few ends it before it
trains, and which ones they are differs from revision to revision, and from trainer to trainer.
"""

from __future__ import annotations

import ast
import re
import warnings
from dataclasses import dataclass
from pathlib import Path

_CLASSES = {
    "training": "TrainingConfig",
    "inference": "InferenceConfig",
    "dataloader": "DataloaderConfig",
    "model": "ModelConfig",
    "lora": "LoraConfig",
}
_IMPORT = re.compile(r"^\s*from (src\.trainer\.\w+) import", re.MULTILINE)
_FILE = re.compile(r"""["'](\w+\.json)["']""")


@dataclass(frozen=True)
class Keys:
    """The keys of a section."""

    needed: frozenset[str]
    allowed: frozenset[str]


@dataclass(frozen=True)
class FlowTrainer:
    """A trainer in a checkout of FLOW."""

    script: Path
    """A script at the checkout's top, or the module itself."""
    module: str
    """Dotted, `src.trainer.train_chroma`."""
    sections: dict[str, Keys]
    config_names: frozenset[str]
    """Files that it may read from the folder where it is started."""

    wants_main: bool
    """True if its ranks need arguments that only its `main` provides."""

    @property
    def is_script(self) -> bool:
        """True if a script starts it."""
        return self.script.stem != self.module.rpartition(".")[2]


def read_trainer(checkout: Path, name: str) -> FlowTrainer | None:
    """The trainer called `name`, `train_mp.py` or `src.trainer.train_chroma`; None if there is none."""
    if name.endswith(".py"):
        script = checkout / name
        found = _IMPORT.search(_text(script))
        module = found[1] if found else ""
    else:
        module, script = name, checkout.joinpath(*name.split(".")).with_suffix(".py")
    source = _text(checkout.joinpath(*module.split(".")).with_suffix(".py")) if module else ""
    if not source:
        return None
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return None
    names = frozenset({"training_config.json", *_FILE.findall(source)})
    return FlowTrainer(script, module, _sections(tree), names, _wants_main(tree))


def names_of_trainers(checkout: Path) -> list[str]:
    """The scripts at the top of a checkout that start a trainer, and the trainer modules."""
    scripts = [path.name for path in sorted(checkout.glob("train_*.py")) if _IMPORT.search(_text(path))]
    modules = sorted((checkout / "src" / "trainer").glob("train_*.py"))
    return [*scripts, *(f"src.trainer.{path.stem}" for path in modules)]


IMPORTABLE = "51ee4e6"
"""The newest revision of FLOW's main branch whose Chroma trainers can be imported (2025-12-22)."""


def wrong_calls(path: Path, checkout: Path) -> list[str]:
    """Calls of dataclasses with unknown keys, which would end the import of a module."""
    try:
        with warnings.catch_warnings():
            # Warnings about the regular expressions of other people's code.
            warnings.simplefilter("ignore")
            tree = ast.parse(_text(path))
    except SyntaxError as error:
        return [f"{path.relative_to(checkout)} cannot be imported: {error.msg} in line {error.lineno}"]
    classes = {
        node.name: _keys(node) for node in tree.body if isinstance(node, ast.ClassDef) and _is_data(node)
    }
    calls = [
        node.value for node in tree.body if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call)
    ]
    found: list[str] = []
    for call in calls:
        name = call.func.id if isinstance(call.func, ast.Name) else ""
        given = {word.arg for word in call.keywords if word.arg}
        for key in sorted(given - classes[name].allowed) if name in classes else ():
            place = f"{path.relative_to(checkout)} cannot be imported: {name} has no {key}."
            hint = (
                f" In FLOW, revision {IMPORTABLE} can: git checkout {IMPORTABLE}" if key == "use_x0" else ""
            )
            found.append(f"{place}{hint}")
    return found


def _is_data(node: ast.ClassDef) -> bool:
    """True for a dataclass without base classes, whose fields are all of its parameters."""
    parts = [part for one in node.decorator_list for part in ast.walk(one)]
    names = {part.id for part in parts if isinstance(part, ast.Name)}
    return "dataclass" in names and not node.bases


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def _wants_main(tree: ast.Module) -> bool:
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    trains = [node.args for node in functions if node.name.startswith("train_")]
    return any(len(arguments.args) - len(arguments.defaults) > 2 for arguments in trains)


def _sections(tree: ast.Module) -> dict[str, Keys]:
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    return {section: _keys(classes[name]) for section, name in _CLASSES.items() if name in classes}


def _keys(node: ast.ClassDef) -> Keys:
    fields = [
        (statement.target.id, statement.value)
        for statement in node.body
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
    ]
    needed = frozenset(name for name, value in fields if value is None)
    return Keys(needed, frozenset(name for name, _ in fields))
