"""JSON values that are parsed and not validated yet: checks that narrow their type."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import TypeIs  # start-up stays fast


def is_object(value: object) -> TypeIs[dict[str, Any]]:
    """True for a JSON object."""
    return isinstance(value, dict)


def is_array(value: object) -> TypeIs[list[Any]]:
    """True for a JSON array."""
    return isinstance(value, list)


def is_sequence(value: object) -> TypeIs[list[Any] | tuple[Any, ...]]:
    """True for a list or a tuple."""
    return isinstance(value, list | tuple)


def is_mapping(value: object) -> TypeIs[Mapping[Any, Any]]:
    """True for a mapping of any kind."""
    return isinstance(value, Mapping)
