"""All keys of the configuration in one table, generated from the schema: for flags, help and suggestions."""

from __future__ import annotations

import difflib
import json
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from flowloom.config.run import RunConfig
from flowloom.errors import RunError

Schema = Mapping[str, Any]


@dataclass(frozen=True)
class Key:
    """One dotted key; `N` stands for a position in a list: `extra_inference_config.N.steps`."""

    name: str
    types: tuple[Schema, ...]
    """Types of its value, as JSON schemas without references or unions."""
    help: str
    default: Any = None
    kinds: tuple[str, ...] = ()
    """Kinds of its section that have this key; empty if the section has no kinds."""
    unit: str = ""
    """Unit of its numbers; empty for other keys."""

    @property
    def is_section(self) -> bool:
        """True if its value has keys."""
        return any("properties" in kind for kind in (*self.types, *self.items))

    @property
    def items(self) -> tuple[Schema, ...]:
        """Types of the entries of a list; empty for other keys."""
        return next((tuple(kind["alternatives"]) for kind in self.types if kind.get("type") == "array"), ())

    @property
    def type_text(self) -> str:
        """Its type as text: `int`, `a|b`, `list of float`."""
        words = list(dict.fromkeys(_words(kind) for kind in self.types))
        return ("|" if all("const" in kind or "properties" in kind for kind in self.types) else " or ").join(
            words
        )

    @property
    def default_text(self) -> str:
        """Its default as text."""
        return self.default if isinstance(self.default, str) and self.default else json.dumps(self.default)


@cache
def config_keys() -> Mapping[str, Key]:
    """All keys by name, in the schema's order; sections come before their keys."""
    schema = RunConfig.model_json_schema()
    keys: dict[str, Key] = {}
    for key in _walk("", schema, schema["$defs"]):
        known = keys.get(key.name)
        keys[key.name] = _joined(known, key) if known else key
    return keys


def _joined(one: Key, other: Key) -> Key:
    """A key that several kinds of a section have."""
    kinds = one.kinds + other.kinds
    if not one.name.endswith(".kind"):
        return replace(one, kinds=kinds)
    return replace(one, kinds=kinds, types=one.types + other.types, help=f"{one.help} {other.help}")


def schema_text() -> str:
    """The JSON schema of a configuration as text."""
    return json.dumps(RunConfig.model_json_schema(), indent=1, ensure_ascii=False) + "\n"


def schema_difference(path: Path | str, max_lines: int = 20) -> str:
    """The difference between the schema in the file at `path` and this version's; empty if equal.

    Raises:
        RunError: the file cannot be read.
    """
    try:
        kept = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{path}: cannot be read ({error}).") from error
    here, there = schema_text().splitlines(), kept.splitlines()
    lines = list(difflib.unified_diff(there, here, str(path), "this version", lineterm="", n=1))
    return "\n".join(lines[:max_lines])


def key_of(path: str) -> Key | None:
    """The key at `path`, which may contain positions in lists."""
    return config_keys().get(".".join("N" if part.isdigit() else part for part in path.split(".")))


def nearest(path: str, others: Iterable[str] = ()) -> str | None:
    """The key most similar to `path`: the same name in another section, or a similar name."""
    names = [*(name for name, key in config_keys().items() if not key.is_section), *others]
    section, _, last = path.rpartition(".")
    elsewhere = [name for name in names if name.rpartition(".")[2] == last and name != path]
    if elsewhere:
        return min(elsewhere, key=lambda name: (name.count("."), name.count("N")))
    general = ".".join("N" if part.isdigit() else part for part in section.split("."))
    beside = {name.rpartition(".")[2]: name for name in names if name.rpartition(".")[0] == general}
    close = difflib.get_close_matches(last, beside, n=1, cutoff=0.6)
    if close:
        return f"{section}.{close[0]}".lstrip(".")
    by_word: dict[str, str] = {}
    for name in [*config_keys(), *names]:
        by_word.setdefault(name.rpartition(".")[2], name)
    close = difflib.get_close_matches(last, by_word, n=1, cutoff=0.7)
    return by_word[close[0]] if close else None


def _walk(prefix: str, section: Schema, defs: Schema) -> Iterator[Key]:
    tag = section["properties"].get("kind", {}).get("const")
    for name, node in section["properties"].items():
        types = tuple(_alternatives(node, defs))
        path = f"{prefix}{name}"
        about = f"{tag}: {section['description']}" if name == "kind" and tag else _description(node, types)
        kinds = (tag,) if tag else ()
        yield Key(path, types, " ".join(about.split()), node.get("default"), kinds, _unit(node, types))
        for kind in types:
            if "properties" in kind:
                yield from _walk(f"{path}.", kind, defs)
            for item in kind.get("alternatives", ()):
                if "properties" in item:
                    yield from _walk(f"{path}.N.", item, defs)


def _description(node: Schema, types: tuple[Schema, ...]) -> str:
    return next((kind["description"] for kind in (node, *types) if "description" in kind), "")


def _unit(node: Schema, types: tuple[Schema, ...]) -> str:
    items = (item for kind in types for item in kind.get("alternatives", ()))
    return next((part["unit"] for part in (node, *types, *items) if "unit" in part), "")


def _alternatives(node: Schema, defs: Schema) -> Iterator[Schema]:
    if "$ref" in node:
        yield from _alternatives(defs[node["$ref"].rpartition("/")[2]], defs)
        return
    for union in ("anyOf", "oneOf"):
        if union in node:
            for choice in node[union]:
                yield from _alternatives(choice, defs)
            return
    if node.get("type") == "array":
        of = node["prefixItems"] if "prefixItems" in node else [node["items"]]
        yield {**node, "alternatives": [kind for item in of for kind in _alternatives(item, defs)]}
    else:
        yield node


def _words(kind: Schema) -> str:
    if "const" in kind or "enum" in kind:
        return "|".join(str(value) for value in ([kind["const"]] if "const" in kind else kind["enum"]))
    if kind.get("type") == "array":
        if "prefixItems" in kind:
            return ",".join(_NAMES[item["type"]] for item in kind["alternatives"])
        return f"list of {' or '.join(dict.fromkeys(_words(item) for item in kind['alternatives']))}"
    if "properties" in kind:
        return kind["properties"].get("kind", {}).get("const", "section")
    return _NAMES.get(kind["type"], str(kind["type"])) + _bounds(kind)


_NAMES = {"integer": "int", "number": "float", "boolean": "bool", "string": "text"}


def _bounds(kind: Schema) -> str:
    low, high = kind.get("minimum"), kind.get("maximum")
    if low is not None and high is not None:
        return f" {low}..{high}"
    signs = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    limits = "".join(f" {sign} {kind[name]:g}" for name, sign in signs.items() if name in kind)
    return limits + (f", multiple of {kind['multipleOf']}" if "multipleOf" in kind else "")


def flags_help() -> str:
    """Every key of the configuration as a flag, by section."""
    lines = ["Every key of the file is also a flag. Flags override the file:"]
    for key in config_keys().values():
        if key.is_section:
            lines += ["", f"{key.name}: {key.help}"]
            continue
        only = f" ({', '.join(key.kinds)})" if key.kinds and not key.name.endswith(".kind") else ""
        default = key.default_text.replace("null", "none").replace("[]", "none")
        value = key.type_text.replace(" or null", "") + (f", {key.unit}" if key.unit else "")
        lines.append(f"  --{key.name} {value}; default: {default}{only}")
        lines += textwrap.wrap(key.help, 100, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)
