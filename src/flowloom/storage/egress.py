"""Checked connections for clients that cannot check addresses, through a proxy process (egress_proxy.py)."""

from __future__ import annotations

import atexit
import json
import os
import secrets
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

from flowloom.errors import Unavailable
from flowloom.storage.egress_proxy import Pass
from flowloom.storage.ssrf import Allowed

_ENDS_WITHIN_S = 5.0


@dataclass(frozen=True)
class Egress:
    """A proxy to one origin only."""

    proxy_url: str
    token: str

    def refusal(self) -> str:
        """Reason why the proxy refused the last request: another origin, or a private address."""
        return _process().query({"why": self.token})

    def keep_open(self) -> None:
        """Restart the process on the same ports if it was killed."""
        _process().query({"why": self.token})


def open_egress(endpoint: str, allowed: Allowed, connect_s: float) -> Egress:
    """A proxy to the origin of `endpoint`, at public addresses and those in `allowed`."""
    requested = Pass(
        port=0,
        token=secrets.token_hex(16),
        endpoint=endpoint,
        names=sorted(allowed.names),
        networks=[str(network) for network in allowed.networks],
        given=sorted(allowed.given),
        connect_s=connect_s,
    )
    admitted = _process().admit(requested)
    return Egress(f"http://store:{admitted.token}@127.0.0.1:{admitted.port}", admitted.token)


class _Process:
    """The proxy process and its passes, which a new process gets again."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._lock = threading.Lock()
        self._passes: list[Pass] = []
        self._process: subprocess.Popen[str] | None = None
        atexit.register(self._close)

    def admit(self, requested: Pass) -> Pass:
        """`requested` with its port, which the proxy listens on from now on."""
        with self._lock:
            self._start()
            admitted = replace(requested, port=self._send(asdict(requested)))
            self._passes.append(admitted)
            return admitted

    def query(self, question: dict[str, Any]) -> Any:
        """The response to `question`."""
        with self._lock:
            self._start()
            return self._send(question)

    def _start(self) -> None:
        if self._process and self._process.poll() is None:
            return
        self._drop()
        # A separate session: Ctrl-C must not end the proxy before this process has sent its last requests.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "flowloom.storage.egress_proxy"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        for admitted in self._passes:
            self._send(asdict(admitted))

    def _send(self, line: dict[str, Any]) -> Any:
        """The response to one line.

        Raises:
            Unavailable: the process was killed.
        """
        assert self._process
        assert self._process.stdin
        assert self._process.stdout
        try:
            self._process.stdin.write(f"{json.dumps(line)}\n")
            self._process.stdin.flush()
            return json.loads(self._process.stdout.readline())
        except (OSError, ValueError):
            raise Unavailable("the process that connects to object stores ended. Try again.") from None

    def _drop(self) -> None:
        """End the process by closing its input."""
        if self._process is None:
            return
        assert self._process.stdin
        assert self._process.stdout
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdout.close()
        try:
            self._process.wait(_ENDS_WITHIN_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _close(self) -> None:
        if self.pid == os.getpid():
            self._drop()


_processes: dict[int, _Process] = {}
_making = threading.Lock()


def _process() -> _Process:
    """The proxy of this process; a forked child does not use its parent's."""
    with _making:
        if os.getpid() not in _processes:
            _processes.clear()
            _processes[os.getpid()] = _Process()
        return _processes[os.getpid()]
