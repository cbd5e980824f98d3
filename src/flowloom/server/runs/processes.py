"""Telling a run's processes to end."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path

import psutil

from flowloom.errors import is_disk_full
from flowloom.files import read_json
from flowloom.run.directory import RunDir
from flowloom.server.runs.process_files import Keeping, born, is_alive


def press(run_dir: RunDir, *, save: bool) -> None:
    """Ask for a stop by the run's own protocol, or end its process group at once."""
    if save:
        _request_stop(run_dir)
    else:
        end_group(run_dir)


def _request_stop(run_dir: RunDir) -> None:
    """Ask by the run's folder, or on a full disk, of our own engine, by a signal that means the same."""
    try:
        run_dir.request("stop")
    except OSError as error:
        if not is_disk_full(error) or not run_dir.is_running():
            raise
        os.kill(int(read_json(run_dir.pid_json)["pid"]), signal.SIGTERM)


def end_group(run_dir: RunDir) -> None:
    """Kill the run's process group, if its head is still the process that was noted."""
    keeping = Keeping.read(run_dir.path)
    if keeping and is_alive(keeping.pid, keeping.born):
        assert keeping.pid
        _kill_group(keeping.pid)
    elif keeping is None or not is_alive(keeping.keeper, keeping.keeper_born):
        _end_by_hand(run_dir)


def _kill_group(head: int) -> None:
    """Kill a process group, and the head's ranks, which have sessions of their own."""
    with suppress(psutil.NoSuchProcess):
        ranks = psutil.Process(head).children(recursive=True)
        with suppress(ProcessLookupError):
            os.killpg(head, signal.SIGKILL)
        for rank in ranks:
            with suppress(psutil.NoSuchProcess):
                rank.kill()


def _end_by_hand(run_dir: RunDir) -> None:
    """Kill the engine that was started by hand: alone, its group may be a person's shell."""
    if not run_dir.is_running():
        return
    with suppress(OSError, ValueError, LookupError, TypeError):
        pid = int(read_json(run_dir.pid_json)["pid"])
        if born(pid):
            os.kill(pid, signal.SIGKILL)


def living_process(path: Path) -> int | None:
    """A process that still runs the run at `path`, as far as its files say so; they may be damaged."""
    with suppress(OSError):
        keeping = Keeping.read(path)
        if keeping and is_alive(keeping.pid, keeping.born):
            return keeping.pid
        if keeping and is_alive(keeping.keeper, keeping.keeper_born):
            return keeping.keeper
    with suppress(OSError, ValueError, LookupError, TypeError):
        if RunDir(path).is_running():
            return int(read_json(path / "pid.json")["pid"])
    return None
