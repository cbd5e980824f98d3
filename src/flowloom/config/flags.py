"""`--section.key value` on the command line: split from other arguments, read by type, laid over a file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from flowloom.config.keys import Key, key_of
from flowloom.errors import Problem

Overrides = Sequence[tuple[str, str]]


def split_flags(arguments: Sequence[str], own: Iterable[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """The arguments that are the verb's `own` options or no options, and the others as (dotted key, text).

    `--key value` and `--key=value` are the same; a flag with no value is `true`.
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
    """Whether `argument` is the value of the flag before it; after a yes-or-no flag it may be a file."""
    if key and {kind.get("type") for kind in key.types} == {"boolean"}:
        return argument.lower() in ("true", "false", "yes", "no", "on", "off", "1", "0")
    return not argument.startswith("--")


def parse(text: str, key: Key | None) -> Any:
    """The value that `text` means for `key`: a number, a word, a list, ...; an unknown key's stays text."""
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
    """A configuration with flags laid over it."""

    data: dict[str, Any]
    origins: dict[str, str] = field(default_factory=dict)
    """The dotted paths that flags set, and the flags."""
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def origin(self, path: str) -> str:
        """Where `path` was set: the flag as written, or the path itself for the file."""
        while path:
            if path in self.origins:
                return self.origins[path]
            path = path.rpartition(".")[0]
        return ""


def lay_over(laid: Laid, overrides: Overrides) -> None:
    """Set what `overrides` say in `laid`, sections and kinds before the keys inside them.

    A section that gets another `kind` loses the keys of its old one: they belong to that kind.
    A list's flag given several times collects.
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
        collected[path] = [*known, *value] if isinstance(known, list) and isinstance(value, list) else value
    return collected


def _set(laid: Laid, path: str, value: Any) -> None:
    *sections, last = path.split(".")
    node: Any = laid.data
    for depth, part in enumerate(sections):
        node = _enter(node, part, is_list=path.split(".")[depth + 1].isdigit())
        if node is None:
            here = ".".join(sections[: depth + 1])
            laid.problems.append(Problem(f"--{path}", f"there is no {here} to set it in."))
            return
    if last == "kind" and isinstance(node, dict):
        _drop_other_kind(laid, ".".join(sections), node, value)
    if not _put(node, last, _with_known_kinds(value, _peek(node, last))):
        laid.problems.append(Problem(f"--{path}", "there is no such place in the list."))
        return
    laid.origins[path] = f"--{path}"


def _drop_other_kind(laid: Laid, section: str, node: dict[str, Any], kind: str) -> None:
    old_kind = node.get("kind", (key_of(f"{section}.kind") or Key("", (), "")).default)
    dropped = [name for name in node if name != "kind"]
    if dropped and old_kind != kind:
        names = ", ".join(dropped)
        laid.notes.append(f"{section}: now {kind}; {names} belonged to {old_kind} and went with it.")
        node.clear()


def _with_known_kinds(value: Any, known: Any) -> Any:
    """A list of bare kinds, each with the settings that a list before it has for that kind."""
    if not (isinstance(value, list) and isinstance(known, list)):
        return value
    settings = {entry["kind"]: entry for entry in known if isinstance(entry, dict) and "kind" in entry}
    return [settings.get(entry["kind"], entry) if _is_bare(entry) else entry for entry in value]


def _is_bare(entry: Any) -> bool:
    return isinstance(entry, dict) and entry.keys() == {"kind"} and isinstance(entry["kind"], str)


def _enter(node: Any, part: str, *, is_list: bool) -> Any:
    """The child of `node` that a flag's path goes through; made where it is missing, None if it cannot be."""
    child = _peek(node, part)
    if child is None:
        child = [] if is_list else {}
        if not _put(node, part, child):
            return None
    return child if isinstance(child, dict | list) else None


def _peek(node: Any, part: str) -> Any:
    if isinstance(node, list):
        return node[int(part)] if part.isdigit() and int(part) < len(node) else None
    return node.get(part)


def _put(node: Any, part: str, value: Any) -> bool:
    if isinstance(node, list):
        if not part.isdigit() or int(part) > len(node):
            return False
        node[int(part) : int(part) + 1] = [value]
    else:
        node[part] = value
    return True
