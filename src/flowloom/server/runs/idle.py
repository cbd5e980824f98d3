"""The command of --when-idle, such as one that stops a rented machine once nothing runs on it."""

from __future__ import annotations

import logging
import os
import subprocess
import time
from pathlib import Path

_log = logging.getLogger("flowloom")


class IdleHook:
    """Runs a shell command once per idle period of the given length."""

    def __init__(self, command: str, idle_s: float, home: Path):
        self._command, self._idle_s, self._home = command, idle_s, home
        self._idle_since = time.monotonic()
        self._has_fired = False
        self._process: subprocess.Popen[bytes] | None = None

    def check(self, is_busy: bool, used_at: float) -> None:
        """Run the command if it is due.

        Args:
            is_busy: True if a run is running or about to start.
            used_at: Time of the last change by a client, in seconds of `time.monotonic`.

        Raises:
            OSError: it could not be started. The next attempt is in the next idle period.
        """
        now = time.monotonic()
        is_running = self._process is not None and self._process.poll() is None
        last_use = now if is_busy else used_at
        if last_use > self._idle_since:
            self._idle_since, self._has_fired = last_use, False
        if not self._has_fired and not is_running and now - self._idle_since >= self._idle_s:
            self._has_fired = True
            self._fire()

    def _fire(self) -> None:
        _log.warning("nothing ran or was changed for %g minutes: --when-idle", self._idle_s / 60)
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
