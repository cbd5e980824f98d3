"""The result of an import: a configuration, and a report on each key of the file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Look = Callable[[str], list[str] | None]
"""Names of the folders in a folder; None if it cannot be read."""


@dataclass(frozen=True)
class Given:
    """A key in a file."""

    name: str
    """The name in the report: the key, after its sections if they distinguish keys."""
    key: str
    """sd-scripts' argument."""
    value: Any
    note: str = ""
    """The way in which `key` and `value` follow from the file, if they are not in it."""


@dataclass(frozen=True)
class Files:
    """Context of a configuration: other files, and the folders that it names."""

    dataset_toml: str = ""
    prompts: str = ""
    """A prompt file of sd-scripts: lines, TOML or JSON."""
    look: Look = lambda _: None


@dataclass
class Imported:
    """A configuration for the studio. Each key of the file is in exactly one of the collections below."""

    config: dict[str, Any]
    understood: list[str] = field(default_factory=list)
    """Keys that have the same value here."""
    translated: dict[str, str] = field(default_factory=dict)
    """Keys with another name or value here, which follows."""
    raw: dict[str, str] = field(default_factory=dict)
    """Keys that became raw arguments."""
    unused: dict[str, str] = field(default_factory=dict)
    """Keys without effect in the original program, with the reason."""
    left_over: dict[str, Any] = field(default_factory=dict)
    """Keys that could not be converted, with their values."""
    dropped: dict[str, str] = field(default_factory=dict)
    """Keys that held a secret, with the place for it; the values are not repeated."""
    reasons: dict[str, str] = field(default_factory=dict)
    """Reasons for keys that could not be converted, if known."""
    defaults: dict[str, Any] = field(default_factory=dict)
    """sd-scripts' defaults for missing values that differ from the studio's."""

    def leave(self, name: str, value: Any, reason: str = "") -> None:
        """Report a key that is not converted."""
        self.left_over[name] = value
        if reason:
            self.reasons[name] = reason
