"""The environment of a run's processes, and stopping them."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from flowloom.config.secrets import may_need_secrets
from flowloom.errors import is_disk_full
from flowloom.files import read_json
from flowloom.launchers.places import place_of
from flowloom.run.directory import RunDir
from flowloom.run.task import Command
from flowloom.server.endpoints import environ_for_processes
from flowloom.server.runs.process_files import ProcessRecord, is_alive, start_time


def environment_of(command: Command, devices: Sequence[str], config: Any) -> dict[str, str]:
    """The run's environment: ours, the secrets, the trainer's variables and the visible GPUs.

    Raises:
        ConfigError: the run may need a secret, and the secrets file cannot be read.
    """
    gpus = [device.removeprefix("cuda:") for device in devices if device.startswith("cuda:")]
    # nvidia-smi counts GPUs in bus order, CUDA by default the fastest first.
    visible = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": ",".join(gpus)}
    ours = environ_for_processes(needs_secrets=may_need_secrets(config))
    return {**ours, **command.env, **(visible if devices and not place_of(devices) else {})}


def request_stop(run_dir: RunDir, *, save: bool) -> None:
    """Request a stop through the run directory, or kill the process group at once."""
    if save:
        _request_save_and_stop(run_dir)
    else:
        kill_group(run_dir)


def _request_save_and_stop(run_dir: RunDir) -> None:
    """Touch control/stop. On a full disk, send our engine the equivalent signal instead."""
    try:
        run_dir.request("stop")
    except OSError as error:
        if not is_disk_full(error) or not run_dir.is_running():
            raise
        holder = read_json(run_dir.pid_json)
        if holder["host"] != socket.gethostname():
            raise
        os.kill(int(holder["pid"]), signal.SIGTERM)


def kill_group(run_dir: RunDir) -> None:
    """Kill the run's process group, if its leader is still the recorded process."""
    record = ProcessRecord.read(run_dir.path)
    if record and is_alive(record.pid, record.started):
        assert record.pid
        if place_of(record.devices):
            # It cancels the job of the cluster, and ends after it.
            os.kill(record.pid, signal.SIGTERM)
            return
        _kill_tree(record.pid)
    elif record is None or not is_alive(record.supervisor_pid, record.supervisor_started):
        _kill_engine(run_dir)


def _kill_tree(leader: int) -> None:
    """Kill a process group and the leader's ranks, which run in separate sessions."""
    with suppress(psutil.NoSuchProcess):
        ranks = psutil.Process(leader).children(recursive=True)
        with suppress(ProcessLookupError):
            os.killpg(leader, signal.SIGKILL)
        for rank in ranks:
            with suppress(psutil.NoSuchProcess):
                rank.kill()


def _kill_engine(run_dir: RunDir) -> None:
    """Kill an engine started by hand, but not its process group: that may be the user's shell."""
    if not run_dir.is_running():
        return
    with suppress(OSError, ValueError, LookupError, TypeError):
        holder = read_json(run_dir.pid_json)
        # On a shared disk, the process may be on another machine.
        if holder["host"] == socket.gethostname() and start_time(int(holder["pid"])):
            os.kill(int(holder["pid"]), signal.SIGKILL)


def living_process(path: Path) -> int | None:
    """PID of a process that still runs the run at `path`, according to its files, which may be damaged."""
    with suppress(OSError):
        record = ProcessRecord.read(path)
        if record and is_alive(record.pid, record.started):
            return record.pid
        if record and is_alive(record.supervisor_pid, record.supervisor_started):
            return record.supervisor_pid
    with suppress(OSError, ValueError, LookupError, TypeError):
        if RunDir(path).is_running():
            return int(read_json(path / "pid.json")["pid"])
    return None
