"""This machine: a shell script with torchrun, started in the background."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import psutil

from flowloom.errors import RunError
from flowloom.launchers.base import (
    LAUNCHED,
    Job,
    JobRecord,
    JobStatus,
    engine,
    launch_dir,
    record_end,
    torchrun,
)
from flowloom.run.directory import RunDir

SCRIPT, LOG = "local.sh", "local.log"


class Local:
    """A process group that outlives the terminal. A job's id is PID@start@host."""

    name: str = "local"
    title: str = "This machine"
    place_option: str = ""
    shares_disk: bool = True
    safe_options: frozenset[str] = frozenset()

    def files(self, run_dir: RunDir, job: Job, config: Any) -> dict[str, str]:  # noqa: ARG002
        if job.nodes > 1:
            raise RunError(
                "--on local uses this machine only: leave out --nodes, or choose another launcher."
            )
        if job.options:
            raise RunError(f"--on local has no option {next(iter(job.options))!r}.")
        ranks = shlex.join([*torchrun(job), "--rdzv-endpoint", "localhost:0", *engine(run_dir)])
        return {
            SCRIPT: f"""#!/bin/bash
export {LAUNCHED}=local
# A signal to the process group reaches torchrun, which lets the ranks save: wait for it.
trap : TERM INT HUP
{ranks} &
step=$!
while kill -0 $step 2>/dev/null; do wait $step; status=$?; done
{shlex.join(record_end(run_dir, job))} $status {shlex.quote(str(launch_dir(run_dir) / LOG))}
exit $status
"""
        }

    def submit(self, run_dir: RunDir, job: Job, secrets: Mapping[str, str]) -> str:  # noqa: ARG002
        # By a shell that ends at once: the run is no child of this process, which may end before or after it.
        start = 'bash "$0" >>"$1" 2>&1 </dev/null & echo $!'
        folder = launch_dir(run_dir)
        done = subprocess.run(
            ["bash", "-c", start, str(folder / SCRIPT), str(folder / LOG)],
            env={**os.environ, **secrets},
            stdout=subprocess.PIPE,
            start_new_session=True,
            check=True,
        )
        pid = int(done.stdout)
        return f"{pid}@{psutil.Process(pid).create_time():.2f}@{socket.gethostname()}"

    def status(self, record: JobRecord) -> JobStatus:
        pid, started, host = record.job_id.split("@")
        if host != socket.gethostname():
            return JobStatus("unknown", f"it was started on {host}")
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(int(pid))
            if f"{process.create_time():.2f}" == started and process.status() != psutil.STATUS_ZOMBIE:
                return JobStatus("running", f"process {pid}")
        return JobStatus("ended", f"process {pid} is gone")

    def cancel(self, record: JobRecord) -> None:
        if self.status(record).state == "running":
            leader = psutil.Process(int(record.job_id.split("@")[0]))
            # Ranks run in separate sessions.
            processes = [leader, *leader.children(recursive=True)]
            for process in processes:
                with suppress(psutil.NoSuchProcess):
                    process.send_signal(signal.SIGKILL)

    def places(self) -> list[str]:
        return []
