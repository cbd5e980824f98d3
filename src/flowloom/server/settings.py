"""What `flowloom up` is told."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path

LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]", "::1"})


@dataclass(frozen=True)
class Settings:
    """Where everything lies, and who may ask for it."""

    home: Path
    """Holds runs/, data/, models/, and .flowloom/ with what the studio keeps for itself."""
    more_roots: dict[str, Path] = field(default_factory=dict)
    """Further folders by name."""
    host: str = "127.0.0.1"
    port: int = 7860
    path: str = ""
    """Below which all of it lies for browsers, such as /studio; a proxy may take it away or leave it."""
    token: str | None = field(default=None, repr=False)
    """Without one, only loopback is answered."""
    devices: tuple[str, ...] = ()
    """Those to share out; none: all that are found."""
    when_idle: str | None = field(default=None, repr=False)
    """A shell command for when nothing has run, and nothing was changed, for `idle_minutes`."""
    idle_minutes: float = 30.0

    @property
    def state_dir(self) -> Path:
        """What the studio keeps for itself: no run lies here."""
        return self.home / ".flowloom"

    @property
    def runs_dir(self) -> Path:
        """Where runs lie."""
        return self.home / "runs"

    @property
    def roots(self) -> dict[str, Path]:
        """Every folder that the studio may use, by name."""
        own = {name: self.home / name for name in ("runs", "data", "models")}
        # Where `cache.dir` leads by default: relative paths begin where the studio was started, as for the
        # command line.
        return own | {"cache": Path("cache").absolute()} | self.more_roots


def is_loopback(host: str) -> bool:
    """Whether nobody but this machine can reach `host`."""
    if host in LOCAL_NAMES:
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
