"""What every tracker part is."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from flowloom.parts.base import Section


class Logger(Protocol):
    """Follows a run's events. Called from the engine's process with each event as it is written."""

    def log(self, event: dict[str, Any]) -> None: ...

    def close(self) -> None: ...


class LoggerSpec(Section):
    """A tracker besides `events.jsonl`, which is always written."""

    def build(self, run_dir: Path, config: dict[str, Any]) -> Logger:
        """Open the tracker for the run in `run_dir`; `config` is the run's own, without secrets.

        Raises:
            ConfigError: the tracker's package is not installed; the message names the command that does it.
        """
        raise NotImplementedError
