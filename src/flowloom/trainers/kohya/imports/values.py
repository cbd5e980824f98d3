"""Convert values of files for the configuration: numbers and switches may be strings."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from pydantic import BaseModel, ValidationError

from flowloom.json_types import is_array, is_object

_SWITCHES = {"true": True, "false": False, "1": True, "0": False}


def is_empty(value: Any) -> bool:
    """True if a front end uses the value for 'not set'."""
    return value is None or value == [] or (isinstance(value, str) and value.strip() in ("", "None", "null"))


def number_of(value: Any) -> Any:
    """The number in a string; other values unchanged."""
    if not isinstance(value, str):
        return value
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value


def words_of(value: Any) -> Any:
    """A list of the NAME=VALUE in a string, which kohya_ss splits, or in a table; other values unchanged.

    sd-scripts ends at a word `a=1 b=2` of a list, so that such a word is split, too.
    """
    if is_object(value) and not any(is_object(part) for part in value.values()):
        return [f"{key}={_plain(part)}" for key, part in value.items()]
    if is_array(value):
        return [part for word in value for part in (words_of(word) if _is_several(word) else [word])]
    return value.replace('"', "").split() if isinstance(value, str) else value


def _plain(value: Any) -> str:
    return ",".join(map(str, value)) if is_array(value) else str(value)


def _is_several(word: Any) -> bool:
    """True for several NAME=VALUE in one string; `preset=/my files/a.toml` is one."""
    parts = word.replace('"', "").split() if isinstance(word, str) else []
    return len(parts) > 1 and all("=" in part for part in parts)


def fitted(section: type[BaseModel], key: str, value: Any) -> Any:
    """`value` converted to the type of the field if nothing is lost; otherwise unchanged."""
    kinds = _kinds(section)[key]
    if kinds <= {"string", "null"}:
        return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value
    value = _typed(value, kinds)
    is_zero = not isinstance(value, bool) and value == 0 and "null" in kinds
    # 0 steps between checkpoints mean never in a form.
    return None if is_zero and not _is_valid(section, key, value) else value


def is_same(given: Any, taken: Any) -> bool:
    """True if both are the same value, of any types."""
    if isinstance(given, bool) != isinstance(taken, bool):
        return str(given).lower() == str(taken).lower()
    return given == taken or number_of(given) == taken or words_of(given) == taken or str(given) == str(taken)


def _typed(value: Any, kinds: frozenset[str]) -> Any:
    if isinstance(value, str) and "boolean" in kinds:
        return _SWITCHES.get(value.strip().lower(), value)
    if "array" in kinds:
        value = words_of(value) if kinds <= {"array"} else value
        return list(map(number_of, value)) if is_array(value) and "number" in kinds else value
    if "boolean" in kinds:
        return bool(value) if isinstance(value, int | float) and value in (0, 1) else value
    value = number_of(value)
    return int(value) if isinstance(value, float) and value.is_integer() and "integer" in kinds else value


@lru_cache(16)
def _kinds(section: type[BaseModel]) -> dict[str, frozenset[str]]:
    """JSON names of the types that each field accepts."""
    return {
        key: frozenset(part.get("type", "") for part in schema.get("anyOf", [schema]))
        for key, schema in section.model_json_schema()["properties"].items()
    }


def _is_valid(section: type[BaseModel], key: str, value: Any) -> bool:
    try:
        section.model_validate({key: value})
    except ValidationError:
        return False
    return True
