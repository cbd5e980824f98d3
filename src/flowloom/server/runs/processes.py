"""Stopping a run's processes."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path

import psutil

from flowloom.errors import is_disk_full
from flowloom.files import read_json
from flowloom.run.directory import RunDir
from flowloom.server.runs.process_files import ProcessRecord, is_alive, start_time


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
        os.kill(int(read_json(run_dir.pid_json)["pid"]), signal.SIGTERM)


def kill_group(run_dir: RunDir) -> None:
    """Kill the run's process group, if its leader is still the recorded process."""
    record = ProcessRecord.read(run_dir.path)
    if record and is_alive(record.pid, record.started):
        assert record.pid
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
        pid = int(read_json(run_dir.pid_json)["pid"])
        if start_time(pid):
            os.kill(pid, signal.SIGKILL)


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
