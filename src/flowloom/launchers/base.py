"""The launcher protocol: write files into RUN_DIR/launch, submit them, ask for the state of the job."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field

from flowloom.errors import RunError
from flowloom.run.directory import RunDir

JobState = Literal["pending", "running", "ended", "unknown"]
SUBMIT_S, ASK_S = 120.0, 20.0
"""Time limits of the cluster's tool."""
JOIN_S = 600
"""Time for all nodes to join the rendezvous: some load Python from a slow disk."""
LAUNCHED = "FLOWLOOM_LAUNCHED"
"""Set for processes of a job, which may train the run that the job belongs to."""


@dataclass(frozen=True)
class Job:
    """Where and how a run computes."""

    nodes: int = 1
    gpus: int = 0
    """Per node; 0: on the CPU."""
    processes: int | None = None
    """Ranks per node; None: one for each GPU, or one."""
    options: Mapping[str, str] = field(default_factory=dict[str, str])
    """Options of the launcher, such as partition or time for Slurm."""
    python: str = sys.executable
    """Python with Flowloom on the nodes."""
    join_s: int = JOIN_S

    @property
    def ranks_per_node(self) -> int:
        """Processes that torchrun starts on each node."""
        return self.processes or max(1, self.gpus)


@dataclass(frozen=True)
class JobStatus:
    """State of a job, and the tool's own words for it, such as `PENDING (Resources)`."""

    state: JobState
    detail: str = ""


class LaunchSettings(BaseModel):
    """The machines of a run that is submitted to a cluster."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    nodes: int = Field(default=1, ge=1, le=10_000, description="Machines.")
    gpus: int = Field(default=0, ge=0, le=1000, description="GPUs of each machine; 0: on the CPU.")
    options: dict[str, str] = Field(
        default={}, description="Options of the cluster.", examples=[{"time": "12:00:00"}], max_length=50
    )


class JobRecord(BaseModel):
    """`launch/job.json`: the newest job of a run, and how it ended, once that is known."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    launcher: str
    job_id: str
    nodes: int
    gpus: int
    processes: int | None = None
    options: dict[str, str] = {}
    submitted: float
    is_cancelled: bool = False
    """True if `flowloom launch stop` or the studio cancelled it."""
    ended: float | None = None
    state: JobState = "pending"
    detail: str = ""
    """State and the tool's words as of the last time that it was asked."""


class Launcher(Protocol):
    """A cluster's scheduler. Importing it imports nothing that only a cluster has."""

    name: str
    """As in `--on NAME`."""
    title: str
    place_option: str
    """The option that a place names: in `slurm:gpu`, the partition."""
    safe_options: frozenset[str]
    """Options that a client of the studio may set: none runs a command or writes a file."""
    shares_disk: bool
    """True if the nodes have the run directory, so that its control files reach the run."""

    def files(self, run_dir: RunDir, job: Job, config: Any) -> dict[str, str]:
        """The files of a job by name, for a run with the configuration `config`.

        Raises:
            RunError: an option cannot be used.
        """
        ...

    def submit(self, run_dir: RunDir, job: Job, secrets: Mapping[str, str]) -> str:
        """Submit the files, which are in `launch/`, and return the job's id.

        Args:
            secrets: environment variables of the job that must be in no file.

        Raises:
            RunError: the tool is missing or refuses the job.
        """
        ...

    def status(self, record: JobRecord) -> JobStatus:
        """The state of a job; "unknown" if the tool is not installed here.

        Raises:
            RunError: the tool does not answer.
        """
        ...

    def cancel(self, record: JobRecord) -> None:
        """End a job.

        Raises:
            RunError: the tool is missing or does not answer.
        """
        ...

    def places(self) -> list[str]:
        """Where jobs can be submitted from here, such as Slurm's partitions; empty without the tool.

        Raises:
            RunError: the tool does not answer.
        """
        ...


class ToolMissing(RunError):
    """The cluster's tool is not installed on this machine."""


class ToolRefused(RunError):
    """The cluster's tool ended with an error."""


def launch_dir(run_dir: RunDir) -> Path:
    """The folder of a run's launch files."""
    return run_dir.path.resolve() / "launch"


def output_of(
    command: Sequence[str], limit_s: float = ASK_S, secrets: Mapping[str, str] | None = None, given: str = ""
) -> str:
    """The standard output of a cluster's tool; `given` is its input.

    Raises:
        ToolMissing: it is not installed here.
        ToolRefused: it ended with an error.
        RunError: it did not end in time.
    """
    import os

    try:
        done = subprocess.run(
            command, env={**os.environ, **(secrets or {})}, input=given,
            capture_output=True, text=True, check=False, timeout=limit_s,
        )  # fmt: skip
    except FileNotFoundError as error:
        raise ToolMissing(f"{command[0]} is not installed here.") from error
    except subprocess.TimeoutExpired as error:
        message = (
            f"{command[0]} did not answer within {limit_s:.0f} s: the cluster's scheduler is down or busy."
        )
        raise RunError(message) from error
    if done.returncode:
        said = done.stderr.strip() or done.stdout.strip() or f"status {done.returncode}"
        raise ToolRefused(f"{command[0]} refused: {said[-2000:]}")
    return done.stdout.strip()


def torchrun(job: Job) -> list[str]:
    """The command that starts a node's ranks, without the rendezvous (id, address, settings)."""
    return [
        *(job.python, "-m", "torch.distributed.run", "--nnodes", str(job.nodes)),
        *("--nproc-per-node", str(job.ranks_per_node), "--rdzv-backend", "c10d"),
    ]


def is_described(run_dir: RunDir) -> bool:
    """True for a run of tagging or captioning, whose ranks share the images."""
    return run_dir.run_json.is_file() and run_dir.read_run().get("trainer") in ("tag", "caption")


def engine(run_dir: RunDir) -> list[str]:
    """The arguments of Python for each rank."""
    module = "flowloom.tasks" if is_described(run_dir) else "flowloom.engine"
    return ["-m", module, str(run_dir.path.resolve())]


def record_end(run_dir: RunDir, job: Job) -> list[str]:
    """The command that records a failure which no rank could record; its arguments are a status and a log."""
    return [job.python, "-m", "flowloom.launchers.record_end", str(run_dir.path.resolve())]


def limit_file(run_dir: RunDir) -> Path:
    """The file that a job creates when its time limit comes near; its next start deletes it."""
    return launch_dir(run_dir) / "time_limit"


def stop_file(run_dir: RunDir) -> Path:
    """The control file that asks the run to save and stop."""
    return run_dir.path.resolve() / "control" / "stop"
