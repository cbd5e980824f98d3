"""A real Slurm cluster of two nodes on this machine, in a separate folder."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged")


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A cluster that sbatch reaches; its environment."""
    if reason := why_not():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("slurm") / "cluster"
    with slurm_cluster(folder) as environ, pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", environ["SLURM_CONF"])
        yield environ


def why_not() -> str | None:
    """Why no cluster can be started here; None if it can."""
    missing = [program for program in PROGRAMS if not program_path(program)]
    if missing:
        return f"{', '.join(missing)} not installed: apt-get install slurm-wlm munge"
    return None if os.getuid() == 0 else "Slurm's daemons need root"


def program_path(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path="/usr/sbin")


@contextmanager
def slurm_cluster(folder: Path) -> Generator[dict[str, str]]:
    """The environment in which sbatch reaches the cluster."""
    folder.mkdir(parents=True)
    folder.chmod(0o755)
    ports = free_ports(4)
    configuration = folder / "slurm.conf"
    configuration.write_text(settings(folder, ports))
    environ = {**os.environ, "SLURM_CONF": str(configuration)}
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o600)
    try:
        start(["munged", "--force", "--socket", str(folder / "munge.socket"), "--key-file", str(key),
               "--pid-file", str(folder / "munge.pid"), "--log-file", str(folder / "munge.log"),
               "--seed-file", str(folder / "munge.seed")], environ)  # fmt: skip
        start(["slurmctld", "-f", str(configuration)], environ)
        for node in ("n1", "n2"):
            (folder / "spool" / node).mkdir(parents=True)
            start(["slurmd", "-N", node, "-f", str(configuration)], environ)
        await_idle(environ)
        yield environ
    finally:
        subprocess.run(["scancel", "--full", "--user", "root"], env=environ, capture_output=True, check=False)
        await_no_jobs(environ)
        for path in sorted(folder.glob("*.pid"), reverse=True):
            end(path)


def settings(folder: Path, ports: list[int]) -> str:
    name = socket.gethostname()
    return f"""ClusterName=test
SlurmctldHost={name}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
AuthInfo=socket={folder / "munge.socket"},cred_expire=5
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SchedulerType=sched/builtin
SchedulerParameters=sched_interval=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
MpiDefault=none
KillWait=60
StateSaveLocation={folder / "state"}
SlurmdSpoolDir={folder / "spool" / "%n"}
SlurmctldPidFile={folder / "a-controller.pid"}
SlurmdPidFile={folder / "b-%n.pid"}
SlurmctldLogFile={folder / "controller.log"}
SlurmdLogFile={folder / "%n.log"}
NodeName=n1 NodeHostname={name} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1 State=UNKNOWN
NodeName=n2 NodeHostname={name} NodeAddr=127.0.0.1 Port={ports[3]} CPUs=1 State=UNKNOWN
PartitionName=all Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""


def start(command: list[str], environ: dict[str, str]) -> None:
    """Start a daemon, which leaves a pid file."""
    path = program_path(command[0])
    assert path
    done = subprocess.run([path, *command[1:]], env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (command, done.stdout, done.stderr)


def await_idle(environ: dict[str, str]) -> None:
    """Wait until both nodes take jobs."""
    command = ["sinfo", "--noheader", "--format", "%D %t"]
    for _ in range(120):
        done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
        if done.stdout.split() == ["2", "idle"]:
            return
        time.sleep(0.5)
    raise AssertionError(f"the nodes are not idle: {done.stdout}{done.stderr}")  # pyright: ignore[reportPossiblyUnboundVariable]


def await_no_jobs(environ: dict[str, str]) -> None:
    """Wait until Slurm has removed every job from its queue."""
    command = ["squeue", "--noheader"]
    for _ in range(300):
        done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
        if not done.stdout.strip():
            return
        time.sleep(0.2)
    raise AssertionError(f"jobs do not end: {done.stdout}")  # pyright: ignore[reportPossiblyUnboundVariable]


def kill_tasks_of(node: str) -> None:
    """Kill what a node's jobs run, as if the node had lost its power."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("SLURMD_NODENAME") == node:
                process.kill()


def end(pid_file: Path) -> None:
    """Kill a daemon: nothing of what it would save is needed."""
    with suppress(ProcessLookupError, FileNotFoundError, ValueError):
        os.kill(int(pid_file.read_text()), signal.SIGKILL)


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
