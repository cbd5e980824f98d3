"""What every trainer is to the studio."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from flowloom.errors import Problem
from flowloom.spec.rundir import RunDir


@dataclass(frozen=True)
class Command:
    argv: list[str]
    env: dict[str, str] = field(default_factory=dict)
    cwd: Path | None = None


@dataclass(frozen=True)
class Preset:
    name: str
    title: str
    note: str
    config: dict[str, Any]


class Trainer(Protocol):
    name: str
    title: str
    abilities: frozenset[str]

    def schema(self) -> dict[str, Any]: ...
    def defaults(self) -> dict[str, Any]: ...
    def presets(self) -> list[Preset]: ...
    def check(self, config: dict[str, Any]) -> list[Problem]: ...
    def prepare(self, config: dict[str, Any], run_dir: RunDir, source: str) -> None: ...
    def command(self, run_dir: RunDir, resume: bool) -> Command: ...
    def parse(self, line: str) -> dict[str, Any] | None: ...
    def models(self, roots: Sequence[Path]) -> dict[str, list[Path]]: ...
