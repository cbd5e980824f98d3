"""Ray: a job whose driver starts torchrun on each node; the nodes share the disk of the run directory."""

from __future__ import annotations

import json
import os
import secrets as random
import shutil
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from flowloom.errors import RunError
from flowloom.json_types import is_object
from flowloom.launchers.base import (
    ASK_S,
    LAUNCHED,
    SUBMIT_S,
    Job,
    JobRecord,
    JobState,
    JobStatus,
    ToolMissing,
    engine,
    launch_dir,
    output_of,
    record_end,
    stop_file,
    torchrun,
)
from flowloom.run.directory import RunDir

SCRIPT, LOG = "ray_job.py", "ray.log"
ADDRESS = "http://127.0.0.1:8265"
OPTIONS = {
    "address": f"address of Ray's dashboard; default: RAY_API_SERVER_ADDRESS, or {ADDRESS}",
    "python": "Python with Ray on the cluster; default: python",
    "cpus": "CPUs per node; default: one for each rank",
    "wait": "seconds to wait for free nodes; default: 86400",
}
_STATES: dict[object, JobState] = {"PENDING": "pending", "RUNNING": "running"}

_DRIVER = '''"""Starts torchrun on {nodes} node(s) of a Ray cluster. Written by Flowloom; needs Ray only."""

import os
import signal
import socket
import subprocess
import sys

import ray
from ray.util.placement_group import placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

ID, NODES, CPUS, GPUS, WAIT_S, JOIN_S = {name!r}, {nodes}, {cpus}, {gpus}, {wait_s}, {join_s}
TORCHRUN = {torchrun}
ENGINE = {engine}
RECORD_END = {record_end}
LOG = {log}
STOP = {stop}


class Node:
    """A node of the job: the process of torchrun on it."""

    def __init__(self):
        self.process = None

    def endpoint(self):
        """An address of this node, with a free port, where the nodes meet."""
        with socket.socket() as free:
            free.bind(("", 0))
            return f"{{ray.util.get_node_ip_address()}}:{{free.getsockname()[1]}}"

    def train(self, endpoint, is_host):
        """Run torchrun, and return its exit status. The first node hosts the rendezvous."""
        environ = {{**os.environ, {launched!r}: "ray"}}
        settings = f"join_timeout={{JOIN_S}},is_host={{int(is_host)}}"
        meeting = ["--rdzv-id", ID, "--rdzv-endpoint", endpoint, "--rdzv-conf", settings]
        command = [*TORCHRUN, *meeting, *ENGINE]
        with open(LOG, "ab") as log:
            self.process = subprocess.Popen(command, env=environ, stdout=log, stderr=log)
        return self.process.wait()

    def end(self):
        """End torchrun, which ends its ranks."""
        if self.process and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(40)
            except subprocess.TimeoutExpired:
                self.process.kill()


def main():
    ray.init(log_to_driver=False)
    # Ray sends SIGTERM when the job is stopped: the run saves a checkpoint, if Ray gives it the time.
    signal.signal(signal.SIGTERM, lambda *_: open(STOP, "w").close())
    group = placement_group([{{"CPU": CPUS, "GPU": GPUS}}] * NODES, strategy="STRICT_SPREAD")
    if not group.wait(WAIT_S):
        sys.exit(f"Ray had no {{NODES}} nodes with {{CPUS}} CPUs and {{GPUS}} GPUs within {{WAIT_S}} s.")
    # Two threads, so that a node that runs torchrun can be asked to end it.
    kind = ray.remote(num_cpus=CPUS, num_gpus=GPUS, max_concurrency=2)(Node)
    places = [PlacementGroupSchedulingStrategy(group, i) for i in range(NODES)]
    nodes = [kind.options(scheduling_strategy=place).remote() for place in places]
    endpoint = ray.get(nodes[0].endpoint.remote())
    running = [node.train.remote(endpoint, node is nodes[0]) for node in nodes]
    status = 0
    while running and status == 0:
        ended, running = ray.wait(running)
        try:
            status = ray.get(ended[0])
        except ray.exceptions.RayError as error:
            print(error, file=sys.stderr)
            status = 1
            with open(LOG, "a") as log:
                log.write(f"A node of the job died: {{str(error).splitlines()[0]}}\\n")
    if running:
        ray.wait([node.end.remote() for node in nodes], num_returns=NODES, timeout=60)
    return status


def run():
    status = 1
    try:
        status = main()
    finally:
        subprocess.run([*RECORD_END, str(status), LOG])
    return status


if __name__ == "__main__":
    sys.exit(run())
'''


class Ray:
    """Ray Jobs: `ray job submit` and `ray job stop`; the state is read from the dashboard's HTTP address."""

    name: str = "ray"
    title: str = "Ray"
    place_option: str = "address"
    shares_disk: bool = True
    safe_options: frozenset[str] = frozenset({"cpus", "wait"})

    def files(self, run_dir: RunDir, job: Job, config: Any) -> dict[str, str]:  # noqa: ARG002
        for name in job.options:
            if name not in OPTIONS:
                known = "\n".join(f"  {each}: {about}" for each, about in OPTIONS.items())
                raise RunError(f"--on ray has no option {name!r}. Options:\n{known}")
        values = {
            "nodes": job.nodes,
            "cpus": _whole(job, "cpus", job.ranks_per_node),
            "gpus": job.gpus,
            "wait_s": _whole(job, "wait", 86_400),
            "join_s": job.join_s,
            "torchrun": json.dumps(torchrun(job)),
            "engine": json.dumps(engine(run_dir)),
            "record_end": json.dumps(record_end(run_dir, job)),
            "log": json.dumps(str(launch_dir(run_dir) / LOG)),
            "stop": json.dumps(str(stop_file(run_dir))),
            "launched": LAUNCHED,
            "name": run_dir.path.resolve().name,
        }
        return {SCRIPT: _DRIVER.format_map(values)}

    def submit(self, run_dir: RunDir, job: Job, secrets: Mapping[str, str]) -> str:
        job_id = f"{run_dir.path.resolve().name}-{random.token_hex(4)}"
        # From standard input, because other users can read arguments of a process.
        environment = json.dumps({"env_vars": dict(secrets)})
        command = [
            *(
                "ray",
                "job",
                "submit",
                "--address",
                _address(job.options),
                "--submission-id",
                job_id,
                "--no-wait",
            ),
            *("--runtime-env", "/dev/stdin", "--"),
            *(job.options.get("python", "python"), str(launch_dir(run_dir) / SCRIPT)),
        ]
        try:
            output_of(command, SUBMIT_S, given=environment)
        except ToolMissing as error:
            raise RunError(f"{error} Install it here: pip install 'ray[default]'.") from error
        return job_id

    def status(self, record: JobRecord) -> JobStatus:
        try:
            state = _get(f"{_address(record.options)}/api/jobs/{quote(record.job_id)}").get("status")
        except FileNotFoundError:
            return JobStatus("ended", "no longer known to Ray")
        return JobStatus(_STATES.get(state, "ended"), str(state))

    def cancel(self, record: JobRecord) -> None:
        address = _address(record.options)
        output_of(["ray", "job", "stop", "--address", address, "--no-wait", record.job_id], SUBMIT_S)

    def places(self) -> list[str]:
        is_named = "RAY_API_SERVER_ADDRESS" in os.environ
        return [f"ray:{_address({})}"] if is_named and shutil.which("ray") else []


def _address(options: Mapping[str, str]) -> str:
    return (options.get("address") or os.environ.get("RAY_API_SERVER_ADDRESS") or ADDRESS).rstrip("/")


def _get(url: str) -> dict[str, object]:
    """The JSON object at an address of Ray's dashboard.

    Raises:
        FileNotFoundError: there is none.
        RunError: it does not answer.
    """
    if not url.startswith(("http://", "https://")):
        raise RunError(f"{url}: the address of Ray's dashboard begins with http:// or https://.")
    token = os.environ.get("RAY_AUTH_TOKEN")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=ASK_S) as response:
            content = json.load(response)
    except urllib.error.HTTPError as error:
        if error.code == 404:
            raise FileNotFoundError(url) from error
        raise RunError(f"{url}: Ray answered {error.code} {error.reason}.") from error
    except (OSError, ValueError) as error:
        raise RunError(f"{url}: Ray's dashboard does not answer ({error}).") from error
    if not is_object(content):
        raise RunError(f"{url}: this is not Ray's dashboard.")
    return content


def _whole(job: Job, name: str, usual: int) -> int:
    text = job.options.get(name, str(usual))
    if not text.isdecimal() or int(text) < 1:
        raise RunError(f"--option {name}={text}: write a whole number above 0.")
    return int(text)
