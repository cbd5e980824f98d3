"""The result of an import: a configuration, and what became of each key of the file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Look = Callable[[str], list[str] | None]
"""Names of the folders in a folder; None where it cannot be read here."""


@dataclass(frozen=True)
class Given:
    """One key that a file states."""

    name: str
    """As the report calls it: the key, with the sections before it where they tell keys apart."""
    key: str
    """sd-scripts' argument."""
    value: Any
    note: str = ""
    """How `key` and `value` follow from the file, where they do not stand in it."""


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
    """Keys that are something else here, and what."""
    raw: dict[str, str] = field(default_factory=dict)
    """Keys that became raw arguments."""
    unused: dict[str, str] = field(default_factory=dict)
    """Keys without an effect where the file comes from, and why."""
    left_over: dict[str, Any] = field(default_factory=dict)
    """Keys that could not be taken over, with their values."""
    dropped: dict[str, str] = field(default_factory=dict)
    """Keys that held a secret, and where to put it; the values are not repeated."""
    reasons: dict[str, str] = field(default_factory=dict)
    """Why keys are left over, where that is known."""
    defaults: dict[str, Any] = field(default_factory=dict)
    """Values that the file does not state: sd-scripts' defaults where the studio's differ."""

    def leave(self, name: str, value: Any, reason: str = "") -> None:
        """Report a key that is not taken over."""
        self.left_over[name] = value
        if reason:
            self.reasons[name] = reason
