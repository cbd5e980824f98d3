"""Slurm: a batch script that starts torchrun on each node; the nodes share the disk of the run directory."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from flowloom.errors import RunError
from flowloom.files import replacing, write_json
from flowloom.run.directory import RunDir

FIRST_PORT, NUM_PORTS = 20_000, 10_000
SECONDS_TO_SAVE = 120
"""Time between the signal that Slurm sends and the end of the job: the run saves a checkpoint."""
OWN_OPTIONS = ("job-name", "nodes", "ntasks-per-node", "gpus-per-node", "output", "signal")
_OPTION_NAME = re.compile(r"[a-z][a-z-]*")


@dataclass(frozen=True)
class SlurmJob:
    """Where a run computes."""

    nodes: int = 1
    gpus: int = 0
    """Per node; 0: on the CPU."""
    processes: int | None = None
    """Ranks per node; None: one for each GPU, or one."""
    options: Mapping[str, str] = field(default_factory=dict[str, str])
    """More options of sbatch by their long names, such as partition or time."""

    @property
    def ranks_per_node(self) -> int:
        """Processes that torchrun starts on each node."""
        return self.processes or max(1, self.gpus)


def script(run_dir: RunDir, job: SlurmJob, python: str = sys.executable) -> str:
    """The batch script that trains or resumes `run_dir`.

    Raises:
        RunError: an option of sbatch cannot be used.
    """
    path = run_dir.path.resolve()
    lines = {
        "job-name": path.name,
        "nodes": str(job.nodes),
        "ntasks-per-node": "1",
        **({"gpus-per-node": str(job.gpus)} if job.gpus else {}),
        "output": str(_launch_dir(run_dir) / "slurm-%j.log"),
        "signal": f"B:TERM@{SECONDS_TO_SAVE}",
        **_checked(job.options),
    }
    header = "\n".join(f"#SBATCH --{name}={_in_one_line(value)}" for name, value in lines.items())
    torchrun = shlex.join([
        *(python, "-m", "torch.distributed.run", "--nnodes", str(job.nodes)),
        *("--nproc-per-node", str(job.ranks_per_node), "--rdzv-backend", "c10d"),
    ])  # fmt: skip
    engine = shlex.join(["-m", "flowloom.engine", str(path)])
    stop = shlex.quote(str(path / "control" / "stop"))
    return f"""#!/bin/bash
{header}
# Slurm sends SIGTERM before the time limit and when the job is cancelled: the run saves a checkpoint.
trap 'touch {stop}' TERM
node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address=$(scontrol show node "$node" | sed -n 's/.*NodeAddr=\\([^ ]*\\).*/\\1/p')
port=$(({FIRST_PORT} + SLURM_JOB_ID % {NUM_PORTS}))
srun --kill-on-bad-exit=1 {torchrun} \\
    --rdzv-id "$SLURM_JOB_ID" --rdzv-endpoint "$address:$port" \\
    {engine} &
step=$!
# A signal ends `wait`, not the step.
while kill -0 $step 2>/dev/null; do wait $step; status=$?; done
exit $status
"""


def submit(run_dir: RunDir, job: SlurmJob, environ: Mapping[str, str]) -> str:
    """Write the script into the run directory, submit it, and return the job's id.

    Args:
        environ: of the job; tokens are passed in it and are in no file.

    Raises:
        RunError: sbatch is missing or refuses the job.
    """
    folder = _launch_dir(run_dir)
    folder.mkdir(exist_ok=True)
    path = folder / "job.sbatch"
    with replacing(path) as file:
        file.write(script(run_dir, job).encode())
    job_id = _output(["sbatch", "--parsable", "--export=ALL", str(path)], environ).partition(";")[0]
    write_json(folder / "slurm.json", {"job_id": job_id, "nodes": job.nodes, "gpus": job.gpus})
    return job_id


def _output(command: Sequence[str], environ: Mapping[str, str]) -> str:
    try:
        done = subprocess.run(command, env=dict(environ), capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        message = f"{command[0]} is not installed here. Run this on a login node of the Slurm cluster."
        raise RunError(message) from error
    if done.returncode:
        raise RunError(f"{command[0]} refused the job: {done.stderr.strip() or done.returncode}")
    return done.stdout.strip()


def _launch_dir(run_dir: RunDir) -> Path:
    return run_dir.path.resolve() / "launch"


def _checked(options: Mapping[str, str]) -> Mapping[str, str]:
    for name in options:
        if name in OWN_OPTIONS:
            raise RunError(f"sbatch's option {name} is set by Flowloom: use --nodes, --gpus or --name.")
        if not _OPTION_NAME.fullmatch(name):
            raise RunError(f"{name!r} is not a long option of sbatch, such as partition or time.")
    return options


def _in_one_line(value: str) -> str:
    if "\n" in value or "\r" in value:
        raise RunError(f"an option of sbatch has a line break: {value!r}")
    return shlex.quote(value)
