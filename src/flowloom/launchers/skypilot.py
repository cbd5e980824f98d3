"""SkyPilot: a managed job on rented machines; it starts again elsewhere after a spot instance is lost."""

from __future__ import annotations

import json
import os
import secrets as random
import shlex
import shutil
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import flowloom
from flowloom.config.secrets import NAMES
from flowloom.errors import RunError
from flowloom.json_types import is_array, is_object
from flowloom.launchers.base import (
    LAUNCHED,
    Job,
    JobRecord,
    JobState,
    JobStatus,
    ToolMissing,
    launch_dir,
    output_of,
    torchrun,
)
from flowloom.run.directory import RunDir
from flowloom.run.mirror.layout import RUN_JSON, open_mirror, place_of
from flowloom.storage.base import StorageSection

TASK, PORT = "task.yaml", 29_400
LAUNCH_S = 1800.0
"""The first job of a user starts a machine that watches over all of them."""
RESOURCES = ("accelerators", "cpus", "disk_size", "image_id", "infra", "instance_type", "memory", "use_spot")
"""Options that are keys of SkyPilot's `resources`."""
_ENABLED = "SELECT value FROM config WHERE key LIKE 'enabled_clouds%compute%'"
_PENDING = frozenset({"PENDING", "SUBMITTED", "STARTING", "RECOVERING"})
_RUNNING = frozenset({"RUNNING", "WINDING_DOWN", "CANCELLING"})


class SkyPilot:
    """`sky jobs launch`, `queue` and `cancel`. A job's id is its name, which is unique."""

    name: str = "skypilot"
    title: str = "SkyPilot"
    place_option: str = "infra"
    shares_disk: bool = False
    safe_options: frozenset[str] = frozenset(RESOURCES)

    def files(self, run_dir: RunDir, job: Job, config: Any) -> dict[str, str]:
        return {TASK: task(run_dir, job, config)}

    def submit(self, run_dir: RunDir, job: Job, secrets: Mapping[str, str]) -> str:  # noqa: ARG002
        store_run(run_dir)
        job_id = f"{run_dir.path.resolve().name}-{random.token_hex(4)}"
        # Without a value: `sky` takes it from the environment.
        given = [word for name in NAMES if name in secrets for word in ("--secret", name)]
        path = str(launch_dir(run_dir) / TASK)
        command = ["sky", "jobs", "launch", "--yes", "--detach-run", "--name", job_id, *given, path]
        try:
            output_of(command, LAUNCH_S, secrets)
        except ToolMissing as error:
            raise RunError(f"{error} Install it here: pip install skypilot, then run 'sky check'.") from error
        return job_id

    def status(self, record: JobRecord) -> JobStatus:
        try:
            printed = output_of(["sky", "jobs", "queue", "--all", "--output", "json"], 60.0)
        except ToolMissing:
            return JobStatus("unknown", "sky is not installed here")
        jobs = json.loads(printed[max(0, printed.find("[")) :] or "[]")
        state = next((each["status"] for each in jobs if each.get("job_name") == record.job_id), None)
        if state is None:
            return JobStatus("ended", "no longer known to SkyPilot")
        known: JobState = "pending" if state in _PENDING else "running" if state in _RUNNING else "ended"
        return JobStatus(known, str(state))

    def cancel(self, record: JobRecord) -> None:
        output_of(["sky", "jobs", "cancel", "--yes", "--name", record.job_id], 120.0)

    def places(self) -> list[str]:
        """The clouds that `sky check` enabled, from its database: `sky` itself takes seconds to start."""
        base = Path(os.environ.get("SKY_RUNTIME_DIR") or Path.home()) / ".sky" / "state.db"
        if shutil.which("sky") is None or not base.is_file():
            return []
        try:
            with closing(
                sqlite3.connect(f"{base.absolute().as_uri()}?mode=ro", uri=True, timeout=1)
            ) as opened:
                rows = opened.execute(_ENABLED).fetchall()
            clouds = {str(cloud).lower() for (value,) in rows for cloud in json.loads(value)}
        except (sqlite3.Error, ValueError, TypeError) as error:
            raise RunError(f"{base}: the enabled clouds cannot be read ({error}).") from error
        return [f"skypilot:{cloud}" for cloud in sorted(clouds)]


def task(run_dir: RunDir, job: Job, config: Any) -> str:
    """The task that trains `run_dir` on machines which have no disk in common with this one.

    Raises:
        RunError: an option or a path cannot be used.
    """
    setup = job.options.get("setup", f"pip install flowloom=={flowloom.__version__}")
    python = "python" if job.python.startswith("/") else job.python
    on_nodes = Job(job.nodes, job.gpus, job.processes, python=python, join_s=job.join_s)
    path, paths = run_dir.path.resolve(), _local_paths(config)
    url = _mirror_url(run_dir, config)
    mounts = {str(each): str(each) for each in (paths if url else [path, *paths])}
    return f"""# Written by Flowloom for the run {path.name}.
resources:
{_mapping(_resources(job))}
num_nodes: {job.nodes}

# The local files that the configuration names, at the same paths{"" if url else ", and the run directory"}.
file_mounts:
{_mapping(mounts)}

setup: |
{_indented(setup)}

run: |
  export {LAUNCHED}=skypilot
{_indented(_restoring(url, python, config) if url else f"run={shlex.quote(str(path))}")}
  # The first node hosts the rendezvous.
  exec {shlex.join(torchrun(on_nodes))} \\
    --rdzv-id "$SKYPILOT_TASK_ID" --rdzv-endpoint "$(echo "$SKYPILOT_NODE_IPS" | head -n 1):{PORT}" \\
    --rdzv-conf "join_timeout={job.join_s},is_host=$((SKYPILOT_NODE_RANK == 0))" \\
    -m flowloom.engine "$run"
"""


def _mirror_url(run_dir: RunDir, config: Any) -> str | None:
    """The copy of the run in a bucket, if it has one."""
    mirror: dict[str, Any] = config.get("mirror") or {}
    return f"{mirror['url'].rstrip('/')}/{run_dir.path.resolve().name}" if mirror.get("url") else None


def _restoring(url: str, python: str, config: Any) -> str:
    """Commands that download the run from its mirror; only the first machine writes to that."""
    defaults = StorageSection().model_dump(mode="json")
    storage: dict[str, Any] = config.get("storage") or {}
    access = [
        word
        for name in ("endpoint", "region", "addressing", "anonymous")
        if storage.get(name, defaults[name]) != defaults[name]
        for word in (f"--storage.{name}", str(storage[name]))
    ]
    resume = shlex.join([python, "-m", "flowloom.cli.main", "resume", url, "--download-only", *access])
    return f"""run=$HOME/flowloom-runs/{url.rpartition("/")[2]}
rm -rf "$run"
mirror=()
[ "$SKYPILOT_NODE_RANK" = 0 ] || mirror=(--mirror.url null)
{resume} --runs-dir "$HOME/flowloom-runs" "${{mirror[@]}}" || exit"""


def store_run(run_dir: RunDir) -> None:
    """Write run.json into the mirror, from where the machines take it.

    Raises:
        RunError: the mirror has another run, or does not have this run's checkpoints.
    """
    config = run_dir.read_config()
    if not config.mirror.url:
        return
    is_known = (run_dir.path / "mirror.json").exists()
    url = place_of(run_dir, config).url
    store = open_mirror(url, config.storage)
    has_run = next(iter(store.list()), None) is not None
    if has_run and not is_known:
        raise RunError(f"{url} has another run: choose another --name or mirror.url.")
    if not has_run and run_dir.latest_checkpoint():
        raise RunError(f"{url} does not have the checkpoints of {run_dir.path}: resume it here for a step.")
    store.write(RUN_JSON, run_dir.run_json)


def _resources(job: Job) -> dict[str, Any]:
    for name in job.options:
        if name not in (*RESOURCES, "setup"):
            known = ", ".join((*RESOURCES, "setup"))
            raise RunError(f"--on skypilot has no option {name!r}. Options: {known}.")
    resources = {name: _typed(job.options[name]) for name in RESOURCES if name in job.options}
    kind = resources.get("accelerators")
    if job.gpus and not kind:
        raise RunError("--gpus needs the kind of GPU: --option accelerators=H100")
    if kind and ":" not in str(kind):
        resources["accelerators"] = f"{kind}:{max(1, job.gpus)}"
    return resources or {"cpus": "4+"}


def _local_paths(config: Any) -> list[Path]:
    """The files and folders of this machine in a run's configuration.

    Raises:
        RunError: a path is relative, and would be another one on the nodes.
    """
    found = [Path(text) for text in _texts(config) if "/" in text and Path(text).exists()]
    for path in found:
        if not path.is_absolute():
            raise RunError(
                f"{path}: write it as an absolute path, so that the nodes have it at the same place."
            )
    return list(dict.fromkeys(found))


def _texts(value: Any) -> Iterator[str]:
    if is_object(value):
        for item in value.values():
            yield from _texts(item)
    elif is_array(value):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, str):
        yield value


def _typed(text: str) -> str | int | bool:
    if text in ("true", "false"):
        return text == "true"
    return int(text) if text.isdecimal() else text


def _mapping(values: Mapping[str, Any]) -> str:
    """Lines of YAML, where every string of JSON is one, too."""
    return "\n".join(f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in values.items())


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())
