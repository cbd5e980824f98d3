"""Pydantic errors as problems: one sentence per key, with a suggestion for unknown keys."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from flowloom.config.keys import key_of, nearest
from flowloom.errors import Problem, ProblemCode
from flowloom.json_types import is_array, is_object
from flowloom.printable import printable_value

Place = tuple[str | int, ...]


def problems_of(error: ValidationError, data: Any, others: Iterable[str] = ()) -> dict[Place, list[Problem]]:
    """The problems in `error` by place in `data`; () for contradictions.

    `others`: keys outside the schema to include in suggestions.
    """
    others = list(others)
    by_place: dict[Place, list[Problem]] = {}
    for detail in error.errors(include_url=False):
        place = _place(detail["loc"], data)
        known = by_place.setdefault(place, [])
        for problem in _problems(detail, place, others):
            if problem not in known:
                known.append(problem)
    # A value that matches no type of a union gives an error per type: keep the first.
    return {place: problems[:1] if place else problems for place, problems in by_place.items()}


def booleans_for_numbers(data: Any, path: str = "") -> list[Problem]:
    """Problems for true or false in place of a number, which pydantic would read as 1 or 0."""
    if is_object(data) or is_array(data):
        pairs = data.items() if is_object(data) else enumerate(data)
        return [problem for name, value in pairs for problem in booleans_for_numbers(value, f"{path}{name}.")]
    key = key_of(path.rstrip("."))
    if not isinstance(data, bool) or key is None or "bool" in key.type_text.split(" or "):
        return []
    message = f"must be {key.type_text}, not {_shown(data, path)}."
    return [Problem(path.rstrip("."), message, "wrong-type")]


def _place(loc: Sequence[str | int], data: Any) -> Place:
    """`loc` without the parts that pydantic adds for members of unions."""
    place: list[str | int] = []
    for part in loc:
        parts: Any = dict(enumerate(data)) if is_array(data) else data
        if is_object(parts) and part in parts:
            data = parts[part]
            place.append(part)
    return tuple(place)


def _problems(detail: ErrorDetails, place: Place, others: list[str]) -> list[Problem]:
    path = ".".join(map(str, place))
    kind, context, shown = detail["type"], detail.get("ctx", {}), _shown(detail["input"], path)
    if kind == "contradiction":
        return context["problems"]
    if kind == "extra_forbidden":
        return [Problem(path, _unknown(path, detail["loc"], others), "unknown-key")]
    if kind == "union_tag_invalid":
        return [
            Problem(f"{path}.kind", f"must be one of {context['expected_tags']}, not {context['tag']!r}.")
        ]
    if kind in ("too_short", "too_long"):
        limit = (
            f"at least {context.get('min_length')}" if kind == "too_short" else f"{context.get('max_length')}"
        )
        values = "value" if limit.endswith(" 1") or limit == "1" else "values"
        code: ProblemCode = "out-of-range" if context["actual_length"] else "missing"
        return [Problem(path, f"needs {limit} {values}, not {context['actual_length']}.", code)]
    key = key_of(path)
    if key and (kind.endswith(_TYPE_ERRORS) or len(detail["loc"]) > len(place)):
        return [Problem(path, f"must be {key.type_text}, not {shown}.", "wrong-type")]
    message = detail["msg"].replace("Value error, ", "")
    message = message.replace("Input should", "must").replace("String should match", "must match the")
    return [Problem(path, f"{message[:1].lower()}{message[1:]}, not {shown}.", code_of(kind))]


def code_of(pydantic_type: str) -> ProblemCode:
    """The code of an error that pydantic names by its own type, such as `missing` or `less_than`."""
    if pydantic_type == "missing":
        return "missing"
    if pydantic_type == "extra_forbidden":
        return "unknown-key"
    if pydantic_type.startswith(("less_than", "greater_than", "multiple_of", "too_", "string_too_")):
        return "out-of-range"
    return "wrong-type" if pydantic_type.endswith(_TYPE_ERRORS) else "invalid"


_TYPE_ERRORS = ("_type", "_parsing", "int_from_float", "literal_error", "union_tag_not_found")


def _unknown(path: str, loc: Sequence[str | int], others: list[str]) -> str:
    key = key_of(path)
    if key and key.kinds:
        having = " and ".join(key.kinds)
        section = path.rpartition(".")[0]
        return f"unknown key for {loc[-2]}; it belongs to {having}: set {section}.kind too."
    meant = nearest(path, others)
    if meant == path:
        return "belongs to the FLOW trainer's configuration, not to this one."
    return f"unknown key; did you mean {meant}?" if meant else "unknown key."


def _shown(value: Any, path: str) -> str:
    if isinstance(value, Mapping):
        return "an object"
    # Mask secrets before truncating: half a URL is not recognised as one.
    shown = json.dumps(printable_value(path.rstrip("."), value), ensure_ascii=False, default=repr)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
