"""A real Ray cluster on this machine, each node with one CPU, in a separate folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import psutil

from tests.engine.slurm_cluster import free_ports


def why_not() -> str | None:
    """Why no cluster can be started here; None if it can."""
    return (
        None
        if shutil.which("ray")
        else "ray is not installed: .ci/run installs it, or pip install 'ray[default]'"
    )


class Cluster:
    """Two nodes: their processes, and the address of the dashboard."""

    def __init__(self, folder: Path, log: IO[bytes]):
        self.folder, self.log = folder, log
        self.port, dashboard, agent = free_ports(3)
        self.address = f"http://127.0.0.1:{dashboard}"
        self.head = self._start(
            "--head", "--port", str(self.port), "--dashboard-port", str(dashboard),
            "--dashboard-agent-listen-port", str(agent), "--temp-dir", str(folder),
        )  # fmt: skip
        self._await_nodes(1)
        self.other = self.add_node()
        self._await_nodes(2)

    @property
    def python(self) -> str:
        """The Python that has Ray."""
        return str(Path(shutil.which("ray") or "").with_name("python"))

    def await_end(self, job_id: str) -> None:
        """Wait until a job has ended."""
        for _ in range(600):
            with urllib.request.urlopen(f"{self.address}/api/jobs/{job_id}", timeout=20) as response:
                if json.load(response)["status"] in ("STOPPED", "SUCCEEDED", "FAILED"):
                    return
            time.sleep(0.2)
        raise AssertionError(f"{job_id} does not end")

    def add_node(self) -> subprocess.Popen[bytes]:
        """Start a node beside the first one."""
        return self._start(
            "--address", f"127.0.0.1:{self.port}", "--dashboard-agent-listen-port", str(free_ports(1)[0])
        )

    def _start(self, *arguments: str) -> subprocess.Popen[bytes]:
        ray = shutil.which("ray")
        assert ray
        environ = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
        sizes = ("--num-cpus", "1", "--num-gpus", "0", "--object-store-memory", str(80 * 2**20))
        command = [ray, "start", *arguments, *sizes, "--node-ip-address", "127.0.0.1", "--block"]
        return subprocess.Popen(
            command, env=environ, stdout=self.log, stderr=self.log, start_new_session=True
        )

    def _await_nodes(self, count: int) -> None:
        for _ in range(600):
            with (
                suppress(OSError, urllib.error.URLError),
                urllib.request.urlopen(f"{self.address}/nodes?view=summary", timeout=5) as response,
            ):
                if response.read().count(b'"ALIVE"') >= count:
                    return
            time.sleep(0.2)
        self.log.flush()
        raise AssertionError(f"Ray does not start:\n{(self.folder / 'log').read_text()}")


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a node with everything that it runs."""
    with suppress(psutil.NoSuchProcess):
        leader = psutil.Process(process.pid)
        for each in [leader, *leader.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                each.kill()
    process.wait()


@contextmanager
def ray_cluster() -> Generator[Cluster]:
    """Two nodes, which take a few seconds to start."""
    # Ray's sockets are in it, and their paths must be short.
    with (
        tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as name,
        (Path(name) / "log").open("wb") as log,
    ):
        cluster = None
        try:
            cluster = Cluster(Path(name), log)
            yield cluster
        finally:
            for process in psutil.process_iter():
                with suppress(psutil.Error):
                    if name in " ".join(process.cmdline()):
                        process.kill()
            if cluster:
                kill(cluster.head)
                kill(cluster.other)
