"""Slurm: a batch script that starts torchrun on each node; the nodes share the disk of the run directory."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import Any

from flowloom.errors import RunError
from flowloom.launchers.base import (
    LAUNCHED,
    SUBMIT_S,
    Job,
    JobRecord,
    JobStatus,
    ToolMissing,
    ToolRefused,
    engine,
    launch_dir,
    limit_file,
    output_of,
    record_end,
    stop_file,
    torchrun,
)
from flowloom.run.directory import RunDir

FIRST_PORT, NUM_PORTS = 20_000, 10_000
SECONDS_TO_SAVE = 120
"""Time between the signal that Slurm sends and the end of the job: the run saves a checkpoint."""
SECONDS_BEFORE_MIRROR = 60
"""For the step in progress and the checkpoint, before `mirror.seconds_to_finish`."""
ON_LIMIT, TO_SAVE = "on-time-limit", "seconds-to-save"
"""Our options: `requeue` queues the job again; the time between the signal and the limit."""
OWN_OPTIONS = (
    "job-name",
    "nodes",
    "ntasks-per-node",
    "gpus-per-node",
    "output",
    "open-mode",
    "signal",
    "requeue",
)
SCRIPT = "job.sbatch"
SAFE_OPTIONS = frozenset({
    *("account", "begin", "constraint", "cpus-per-task", "deadline", "exclude", "exclusive", "gres"),
    *("mem", "mem-per-cpu", "mem-per-gpu", "nice", "nodelist", "partition", "priority", "qos", "reservation"),
    *("time", ON_LIMIT, TO_SAVE),
})  # fmt: skip
NO_CLUSTER = "establish a configuration source"
"""In the error of Slurm's tools on a machine that has them but belongs to no cluster."""
_OPTION_NAME = re.compile(r"[a-z][a-z-]*")
_PENDING = frozenset({"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT"})
_RUNNING = frozenset({"RUNNING", "COMPLETING", "RESIZING", "SIGNALING", "STAGE_OUT", "STOPPED", "SUSPENDED"})


class Slurm:
    """sbatch, squeue and scancel."""

    name: str = "slurm"
    title: str = "Slurm"
    place_option: str = "partition"
    shares_disk: bool = True
    safe_options: frozenset[str] = SAFE_OPTIONS

    def files(self, run_dir: RunDir, job: Job, config: Any) -> dict[str, str]:
        return {SCRIPT: script(run_dir, job, config)}

    def submit(self, run_dir: RunDir, job: Job, secrets: Mapping[str, str]) -> str:  # noqa: ARG002
        path = str(launch_dir(run_dir) / SCRIPT)
        try:
            printed = output_of(["sbatch", "--parsable", "--export=ALL", path], SUBMIT_S, secrets)
        except ToolMissing as error:
            raise RunError(f"{error} Run this on a login node of the Slurm cluster.") from error
        return printed.partition(";")[0]

    def status(self, record: JobRecord) -> JobStatus:
        ask = ["squeue", "--noheader", "--states=all", "--jobs", record.job_id, "--format=%T|%r"]
        try:
            state, _, reason = output_of(ask).partition("\n")[0].partition("|")
        except ToolMissing:
            return JobStatus("unknown", "squeue is not installed here")
        except ToolRefused as error:
            if "Invalid job id" not in str(error):
                raise
            state, reason = _past_state(record.job_id), ""
        return _status(state, reason)

    def cancel(self, record: JobRecord) -> None:
        output_of(["scancel", record.job_id])

    def places(self) -> list[str]:
        try:
            names = output_of(["sinfo", "--noheader", "--format=%R"]).split()
        except ToolMissing:
            return []
        except ToolRefused as error:
            if NO_CLUSTER not in str(error):
                raise
            return []
        return [f"slurm:{name}" for name in dict.fromkeys(names)]


def script(run_dir: RunDir, job: Job, config: Any) -> str:
    """The batch script that trains or resumes `run_dir`.

    Raises:
        RunError: an option of sbatch cannot be used.
    """
    seconds, is_requeued = _at_limit(job.options, config)
    lines = {
        "job-name": run_dir.path.resolve().name,
        "nodes": str(job.nodes),
        "ntasks-per-node": "1",
        **({"gpus-per-node": str(job.gpus)} if job.gpus else {}),
        "output": str(launch_dir(run_dir) / "slurm-%j.log"),
        "open-mode": "append",
        "signal": f"B:USR1@{seconds}",
        **({"requeue": ""} if is_requeued else {}),
        **_checked(job.options),
    }
    header = "\n".join(f"#SBATCH --{name}{_value(text)}" for name, text in lines.items())
    return f"""#!/bin/bash
{header}
export {LAUNCHED}=slurm
rm -f {shlex.quote(str(limit_file(run_dir)))}
# Slurm sends SIGUSR1 before the time limit, and SIGTERM if the job is cancelled: the run saves a checkpoint.
trap 'touch {shlex.quote(str(limit_file(run_dir)))} {shlex.quote(str(stop_file(run_dir)))}' USR1
trap 'touch {shlex.quote(str(stop_file(run_dir)))}' TERM
node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address=$(scontrol show node "$node" | sed -n 's/.*NodeAddr=\\([^ ]*\\).*/\\1/p')
export endpoint=$address:$(({FIRST_PORT} + SLURM_JOB_ID % {NUM_PORTS}))
train() {{
    # The first node hosts the rendezvous, also if its address is not that of its host name.
    exec {shlex.join(torchrun(job))} \\
        --rdzv-id "$SLURM_JOB_ID" --rdzv-endpoint "$endpoint" \\
        --rdzv-conf "join_timeout={job.join_s},is_host=$((SLURM_NODEID == 0))" \\
        {shlex.join(engine(run_dir))}
}}
export -f train
srun --kill-on-bad-exit=1 bash -c train &
step=$!
# A signal ends `wait`, not the step.
while kill -0 $step 2>/dev/null; do wait $step; status=$?; done
{_ending(run_dir, job, is_requeued=is_requeued)}
exit $status
"""


def _ending(run_dir: RunDir, job: Job, *, is_requeued: bool) -> str:
    """The commands that record the end and, if asked for, queue the job again."""
    log = f"{shlex.quote(str(launch_dir(run_dir)))}/slurm-$SLURM_JOB_ID.log"
    record = f"{shlex.join(record_end(run_dir, job))} $status {log}"
    return f'{record} --requeue && scontrol requeue "$SLURM_JOB_ID"' if is_requeued else record


def _at_limit(options: Mapping[str, str], config: Any) -> tuple[int, bool]:
    """Seconds between the signal and the time limit, and whether the job is then queued again.

    Raises:
        RunError: one of our options has another value.
    """
    then, seconds = options.get(ON_LIMIT, "stop"), options.get(TO_SAVE, "")
    if then not in ("stop", "requeue"):
        raise RunError(f"{ON_LIMIT} is stop or requeue, not {then!r}.")
    if seconds and not (seconds.isdecimal() and 0 < int(seconds) <= 65_535):
        raise RunError(f"{TO_SAVE} is a number of seconds from 1 to 65535, not {seconds!r}.")
    mirror: dict[str, Any] = config.get("mirror") or {}
    to_mirror = SECONDS_BEFORE_MIRROR + int(mirror.get("seconds_to_finish") or 0) if mirror.get("url") else 0
    return int(seconds) if seconds else max(SECONDS_TO_SAVE, to_mirror), then == "requeue"


def _status(state: str, reason: str) -> JobStatus:
    if state in _PENDING:
        return JobStatus("pending", f"{state} ({reason})" if reason not in ("", "None") else state)
    return JobStatus("running" if state in _RUNNING else "ended", state)


def _past_state(job_id: str) -> str:
    """The state of a job that has left Slurm's memory, from accounting if the cluster has it."""
    ask = ["sacct", "--noheader", "--parsable2", "--allocations", "--jobs", job_id, "--format=State"]
    try:
        # A cancelled job is `CANCELLED by 1000`.
        words = output_of(ask).split()
    except (ToolMissing, ToolRefused):
        words = []
    return words[0] if words else "no longer known to Slurm"


def _checked(options: Mapping[str, str]) -> Mapping[str, str]:
    options = {name: text for name, text in options.items() if name not in (ON_LIMIT, TO_SAVE)}
    for name in options:
        if name in OWN_OPTIONS:
            raise RunError(f"sbatch's option {name} is set by Flowloom: use --nodes, --gpus or --name.")
        if not _OPTION_NAME.fullmatch(name):
            raise RunError(f"{name!r} is not a long option of sbatch, such as partition or time.")
    return options


def _value(text: str) -> str:
    """The value of an option in a line of the script; empty for an option without one, such as exclusive."""
    if "\n" in text or "\r" in text:
        raise RunError(f"an option of sbatch has a line break: {text!r}")
    return f"={shlex.quote(text)}" if text else ""
