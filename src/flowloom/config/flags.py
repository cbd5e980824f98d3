"""`--section.key value` flags: separated from other arguments, parsed by type, and applied to a file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from flowloom.config.keys import Key, key_of
from flowloom.errors import Problem
from flowloom.json_types import is_array, is_object

Overrides = Sequence[tuple[str, str]]


def split_flags(arguments: Sequence[str], own: Iterable[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Split arguments into the command's `own` options and positionals, and (dotted key, text) overrides.

    `--key value` and `--key=value` are equal; a flag without a value is `true`.
    """
    own = set(own)
    rest: list[str] = []
    overrides: list[tuple[str, str]] = []
    queue = list(arguments)
    while queue:
        argument = queue.pop(0)
        name, has_value, text = argument.partition("=")
        if not argument.startswith("--") or name in own:
            rest.append(argument)
            continue
        path = name.removeprefix("--")
        if not has_value:
            text = queue.pop(0) if queue and _is_value(queue[0], key_of(path)) else "true"
        overrides.append((path, text))
    return rest, overrides


def _is_value(argument: str, key: Key | None) -> bool:
    """True if `argument` is the value of the flag before it; after a boolean flag it may be a file."""
    if key and {kind.get("type") for kind in key.types} == {"boolean"}:
        return argument.lower() in ("true", "false", "yes", "no", "on", "off", "1", "0")
    return not argument.startswith("--")


def parse(text: str, key: Key | None) -> Any:
    """`text` parsed by the type of `key`; for an unknown key it stays text."""
    if key is None:
        return text
    types = {kind.get("type") for kind in key.types}
    if "null" in types and text in ("null", "none", "None"):
        return None
    if "array" in types:
        return _parse_list(text, key)
    return text if types <= {"string", "null"} else _json_or_text(text)


def _parse_list(text: str, key: Key) -> Any:
    if text.startswith("["):
        return _json_or_text(text)
    if key.is_section:
        return [{"kind": word} for word in text.split(",")] if text else []
    is_prose = all(item == {"type": "string"} for item in key.items)
    parts = [text] if is_prose else [part.strip() for part in text.split(",")]
    is_text = all(item.get("type") == "string" for item in key.items)
    return parts if is_text else [_json_or_text(part) for part in parts]


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


@dataclass
class Laid:
    """A configuration with flags applied to it."""

    data: dict[str, Any]
    origins: dict[str, str] = field(default_factory=dict)
    """The flag that set each dotted path."""
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def origin(self, path: str) -> str:
        """The flag that set `path`; empty if it comes from the file."""
        while path:
            if path in self.origins:
                return self.origins[path]
            path = path.rpartition(".")[0]
        return ""


def apply_flags(laid: Laid, overrides: Overrides) -> None:
    """Apply `overrides` to `laid`, sections and kinds before the keys inside them.

    A section whose `kind` changes loses the keys of its old kind. A list flag can be repeated to add
    entries.
    """
    collected = _collect(overrides)
    for path in sorted(collected, key=lambda path: (path.count("."), path.rpartition(".")[2] != "kind")):
        _set(laid, path, collected[path])


def _collect(overrides: Overrides) -> dict[str, Any]:
    collected: dict[str, Any] = {}
    for path, text in overrides:
        if key_of(f"{path}.kind") and not text.startswith("{"):
            path = f"{path}.kind"
        value = parse(text, key_of(path))
        known = collected.get(path)
        collected[path] = [*known, *value] if is_array(known) and is_array(value) else value
    return collected


def _set(laid: Laid, path: str, value: Any) -> None:
    *sections, last = path.split(".")
    node: Any = laid.data
    for depth, part in enumerate(sections):
        node = _enter(node, part, is_list=path.split(".")[depth + 1].isdigit())
        if node is None:
            here = ".".join(sections[: depth + 1])
            laid.problems.append(Problem(f"--{path}", f"{here} does not exist.", "not-found"))
            return
    if last == "kind" and is_object(node):
        _drop_other_kind(laid, ".".join(sections), node, value)
    if not _put(node, last, _with_known_kinds(value, _peek(node, last))):
        laid.problems.append(Problem(f"--{path}", "the list has no such position."))
        return
    laid.origins[path] = f"--{path}"


def _drop_other_kind(laid: Laid, section: str, node: dict[str, Any], kind: str) -> None:
    old_kind = node.get("kind", (key_of(f"{section}.kind") or Key("", (), "")).default)
    dropped = [name for name in node if name != "kind"]
    if dropped and old_kind != kind:
        names = ", ".join(dropped)
        laid.notes.append(f"{section}: changed to {kind}; removed {names}, which belonged to {old_kind}.")
        node.clear()


def _with_known_kinds(value: Any, known: Any) -> Any:
    """A list of bare kinds, each with the settings that the previous list has for that kind."""
    if not (is_array(value) and is_array(known)):
        return value
    settings = {entry["kind"]: entry for entry in known if is_object(entry) and "kind" in entry}
    return [settings.get(entry["kind"], entry) if _is_bare(entry) else entry for entry in value]


def _is_bare(entry: Any) -> bool:
    return is_object(entry) and entry.keys() == {"kind"} and isinstance(entry["kind"], str)


def _enter(node: Any, part: str, *, is_list: bool) -> Any:
    """The child of `node` on a flag's path, created if it is missing; None if that is impossible."""
    child = _peek(node, part)
    if child is None:
        empty: list[Any] | dict[str, Any] = [] if is_list else {}
        return empty if _put(node, part, empty) else None
    return child if is_object(child) or is_array(child) else None


def _peek(node: Any, part: str) -> Any:
    if is_array(node):
        return node[int(part)] if part.isdigit() and int(part) < len(node) else None
    return node.get(part)


def _put(node: Any, part: str, value: Any) -> bool:
    if is_array(node):
        if not part.isdigit() or int(part) > len(node):
            return False
        node[int(part) : int(part) + 1] = [value]
    else:
        node[part] = value
    return True
