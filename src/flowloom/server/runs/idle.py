"""What the owner of a rented box wants done once nothing has run there for a while: stop it, say."""

from __future__ import annotations

import logging
import os
import subprocess
import time
from pathlib import Path

_log = logging.getLogger("flowloom")


class IdleHook:
    """Runs a shell command once after so much rest; again only after the next one."""

    def __init__(self, command: str, patience_s: float, home: Path):
        self._command, self._patience_s, self._home = command, patience_s, home
        self._rests_since = time.monotonic()
        self._has_fired = False
        self._process: subprocess.Popen[bytes] | None = None

    def look(self, is_busy: bool, used_at: float) -> None:
        """Start it where it is due.

        Args:
            is_busy: Whether a run runs, or will as soon as it can.
            used_at: When somebody last changed something, in seconds of `time.monotonic`.

        Raises:
            OSError: it could not be started; it is left alone until the next rest.
        """
        now = time.monotonic()
        is_running = self._process is not None and self._process.poll() is None
        last_use = now if is_busy else used_at
        if last_use > self._rests_since:
            self._rests_since, self._has_fired = last_use, False
        if not self._has_fired and not is_running and now - self._rests_since >= self._patience_s:
            self._has_fired = True
            self._fire()

    def _fire(self) -> None:
        _log.warning("nothing ran or was changed for %g minutes: --when-idle", self._patience_s / 60)
        with (self._home / ".flowloom" / "idle.log").open("ab") as log:
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", self._command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._home,
                env=os.environ | {"FLOWLOOM_HOME": str(self._home)},
                start_new_session=True,
            )
