"""pydantic's errors as Flowloom's: one sentence for each place, with the key that may have been meant."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from flowloom.config.keys import key_of, nearest
from flowloom.errors import Problem
from flowloom.printable import printable_value

Place = tuple[str | int, ...]


def problems_of(error: ValidationError, data: Any, others: Iterable[str] = ()) -> dict[Place, list[Problem]]:
    """The problems in `error`, by the place in `data` that each is about; () for contradictions.

    `others` are keys outside of the schema that may have been meant.
    """
    others = list(others)
    found: dict[Place, list[Problem]] = {}
    for detail in error.errors(include_url=False):
        place = _place(detail["loc"], data)
        known = found.setdefault(place, [])
        for problem in _problems(detail, place, others):
            if problem not in known:
                known.append(problem)
    # A value that fits none of a union's types fails once for each: say it once.
    return {place: problems[:1] if place else problems for place, problems in found.items()}


def booleans_for_numbers(data: Any, path: str = "") -> list[Problem]:
    """Where `data` says true or false for a number: pydantic would read 1 or 0."""
    if isinstance(data, dict | list):
        pairs = data.items() if isinstance(data, dict) else enumerate(data)
        return [found for name, value in pairs for found in booleans_for_numbers(value, f"{path}{name}.")]
    key = key_of(path.rstrip("."))
    if not isinstance(data, bool) or key is None or key.type_text == "bool":
        return []
    return [Problem(path.rstrip("."), f"must be {key.type_text}, not {_shown(data, path)}.")]


def _place(loc: Sequence[str | int], data: Any) -> Place:
    """`loc` without the parts that pydantic adds for the kinds and types of unions."""
    place: list[str | int] = []
    for part in loc:
        parts: Any = dict(enumerate(data)) if isinstance(data, list) else data
        if isinstance(parts, dict) and part in parts:
            data = parts[part]
            place.append(part)
    return tuple(place)


def _problems(detail: ErrorDetails, place: Place, others: list[str]) -> list[Problem]:
    path = ".".join(map(str, place))
    kind, context, shown = detail["type"], detail.get("ctx", {}), _shown(detail["input"], path)
    if kind == "contradiction":
        return context["problems"]
    if kind == "extra_forbidden":
        return [Problem(path, _unknown(path, detail["loc"], others))]
    if kind == "union_tag_invalid":
        return [
            Problem(f"{path}.kind", f"must be one of {context['expected_tags']}, not {context['tag']!r}.")
        ]
    if kind in ("too_short", "too_long"):
        limit = (
            f"at least {context.get('min_length')}" if kind == "too_short" else f"{context.get('max_length')}"
        )
        values = "value" if limit.endswith(" 1") or limit == "1" else "values"
        return [Problem(path, f"needs {limit} {values}, not {context['actual_length']}.")]
    key = key_of(path)
    if key and (kind.endswith(_TYPE_ERRORS) or len(detail["loc"]) > len(place)):
        return [Problem(path, f"must be {key.type_text}, not {shown}.")]
    message = detail["msg"].replace("Input should", "must").replace("Value error, ", "")
    return [Problem(path, f"{message[:1].lower()}{message[1:]}, not {shown}.")]


_TYPE_ERRORS = ("_type", "_parsing", "int_from_float", "literal_error", "union_tag_not_found")


def _unknown(path: str, loc: Sequence[str | int], others: list[str]) -> str:
    key = key_of(path)
    if key and key.kinds:
        having = " and ".join(key.kinds)
        section = path.rpartition(".")[0]
        return f"{loc[-2]} has no such key; {having} has: set {section}.kind as well."
    meant = nearest(path, others)
    if meant == path:
        return "belongs to our own engine's configuration, not to this one."
    return f"unknown key; did you mean {meant}?" if meant else "unknown key, and none is like it."


def _shown(value: Any, path: str) -> str:
    if isinstance(value, Mapping):
        return "an object"
    # Before it is cut: half an address does not look like one.
    shown = json.dumps(printable_value(path.rstrip("."), value), ensure_ascii=False, default=repr)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
