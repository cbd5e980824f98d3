"""Settings of `flowloom up`."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path

LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]", "::1"})


@dataclass(frozen=True)
class Settings:
    """Folders, address and access of a studio."""

    home: Path
    """Contains runs/, data/, models/ and .flowloom/ with the studio's own files."""
    more_roots: dict[str, Path] = field(default_factory=dict)
    """Additional root folders by name."""
    host: str = "127.0.0.1"
    port: int = 7860
    path: str = ""
    """Path prefix for browsers, such as /studio. A proxy may strip it or pass it on."""
    token: str | None = field(default=None, repr=False)
    """Without a token, only requests from this machine are answered."""
    devices: tuple[str, ...] = ()
    """Devices for runs; empty: all that are found."""
    when_idle: str | None = field(default=None, repr=False)
    """A shell command to run after `idle_minutes` without a running run or a change."""
    idle_minutes: float = 30.0

    @property
    def state_dir(self) -> Path:
        """The folder of the studio's own files."""
        return self.home / ".flowloom"

    @property
    def runs_dir(self) -> Path:
        """The folder of the runs."""
        return self.home / "runs"

    @property
    def roots(self) -> dict[str, Path]:
        """Every root folder by name."""
        own = {name: self.home / name for name in ("runs", "data", "models")}
        # The default of `cache.dir`. Like the command line, it is relative to the working directory.
        return own | {"cache": Path("cache").absolute()} | self.more_roots


def is_loopback(host: str) -> bool:
    """True if only this machine can reach `host`."""
    if host in LOCAL_NAMES:
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
