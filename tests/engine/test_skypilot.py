"""Runs by SkyPilot: the task as SkyPilot's own parser reads it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import yaml

from flowloom.cli.main import main
from flowloom.errors import RunError
from flowloom.launchers.base import Job, LaunchSettings
from flowloom.launchers.follow import follow
from flowloom.launchers.skypilot import SkyPilot, store_run, task
from flowloom.run.directory import RunDir
from flowloom.run.events import read_events
from flowloom.run.mirror.layout import open_mirror
from tests.engine.mirrored import Bucket, bucket  # noqa: F401 -- a fixture
from tests.engine.test_slurm import await_events

_READ = """
import json, sys
import sky
task = sky.Task.from_yaml(sys.argv[1])
(resources,) = task.resources
print(json.dumps({
    "nodes": task.num_nodes, "setup": task.setup, "run": task.run, "mounts": task.file_mounts,
    "accelerators": resources.accelerators, "spot": resources.use_spot, "cpus": resources.cpus,
}))
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("sky") is None, reason="sky is not installed: pip install skypilot")
def test_skypilot_reads_the_task(make_run: Callable[..., RunDir], tmp_path: Path, synthetic_data: Path):
    run_dir, path = make_run("fox"), tmp_path / "task.yaml"
    options = {
        "accelerators": "H100",
        "use_spot": "true",
        "cpus": "16+",
        "setup": "set -e\npip install 'a: b'",
    }
    path.write_text(task(run_dir, Job(2, 8, options=options), run_dir.read_run()["config"]))
    python = Path(shutil.which("sky") or "").with_name("python")
    read = subprocess.run(
        [python, "-c", _READ, path],
        env={**os.environ, "HOME": str(tmp_path), "SKYPILOT_DISABLE_USAGE_COLLECTION": "1"},
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert read.returncode == 0, read.stderr
    found = json.loads(read.stdout.splitlines()[-1])
    run = found.pop("run")
    mounts = found.pop("mounts")
    assert found == {
        "nodes": 2, "setup": "set -e\npip install 'a: b'\n",
        "accelerators": {"H100": 8}, "spot": True, "cpus": "16+",
    }  # fmt: skip
    assert mounts[str(run_dir.path)] == str(run_dir.path)
    assert str(synthetic_data) in mounts
    assert subprocess.run(["bash", "-n"], input=run, text=True, check=False).returncode == 0
    assert "--nnodes 2 --nproc-per-node 8 --rdzv-backend c10d" in run
    assert f"run={run_dir.path}\n" in run
    assert '-m flowloom.engine "$run"' in run


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpus", "8"], "--gpus needs the kind of GPU: --option accelerators=H100"),
        (
            ["--option", "partition=gpu"],
            "--on skypilot has no option 'partition'. Options: accelerators, cpus",
        ),
    ],
)
def test_options_that_cannot_be_used_are_rejected(
    arguments: list[str], message: str, make_run: Callable[..., RunDir], capsys: pytest.CaptureFixture[str]
):
    assert main(["launch", "--on", "skypilot", str(make_run().path), "--dry-run", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_relative_path_is_rejected_because_the_nodes_have_another_working_folder(
    make_run: Callable[..., RunDir], synthetic_data: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(synthetic_data.parent)
    folder = f"./{synthetic_data.name}"
    run_dir = make_run(dataloader={"image_folder_path": folder})
    with pytest.raises(RunError, match="write it as an absolute path"):
        task(run_dir, Job(), run_dir.read_run()["config"])


def test_a_machine_without_skypilot_is_named(
    make_run: Callable[..., RunDir], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PATH", "/nowhere")
    assert main(["launch", "--on", "skypilot", str(make_run().path)]) == 2
    assert "sky is not installed here. Install it here: pip install skypilot" in capsys.readouterr().err


@pytest.mark.slow
def test_a_task_with_a_mirror_continues_on_another_machine(
    make_run: Callable[..., RunDir],
    bucket: Bucket,  # noqa: F811
    tmp_path: Path,
):
    """The commands of the task, run here as on a spot instance that is stopped and replaced."""
    sections = bucket.sections(limits={"max_steps": 60}, training={"save_every": 1000})
    run_dir = make_run("run", **sections)
    text = task(run_dir, Job(python="python"), run_dir.read_run()["config"])
    script = yaml.safe_load(text)["run"]
    assert str(run_dir.path) not in yaml.safe_load(text)["file_mounts"]
    store_run(run_dir)
    machines = [tmp_path / "first", tmp_path / "second"]
    for machine in machines:
        machine.mkdir()
        process = start(script, machine)
        there = RunDir(machine / "flowloom-runs" / "run")
        if machine is machines[0]:
            await_events(there, "step", 3)
            process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0 or machine is machines[0], (machine / "log").read_text()
    (stopped,) = steps_of(machines[0], "stopped", "step")
    assert steps_of(machines[1], "started", "resumed_from") == [None, stopped]
    assert steps_of(machines[1], "finished", "step") == [sections["limits"]["max_steps"]]
    other = make_run("other", **sections)
    open_mirror(f"{bucket.url}/other", bucket.storage).write("run.json", b"{}")
    with pytest.raises(RunError, match="has another run: choose another --name"):
        store_run(other)


SKY = """#!{python}
import json, os, signal, subprocess, sys
from pathlib import Path
import yaml

home = Path({home!r})
match sys.argv[1:]:
    case ["jobs", "launch", *words, task]:
        run = yaml.safe_load(Path(task).read_text())["run"]
        sky = {{"SKYPILOT_NODE_RANK": "0", "SKYPILOT_NODE_IPS": "127.0.0.1", "SKYPILOT_TASK_ID": "task-1"}}
        log = (home / "log").open("wb")
        start = ["bash", "-c", f"({{run}}); echo $? > {{home}}/status"]
        environ = {{**os.environ, **sky, "HOME": str(home)}}
        job = subprocess.Popen(start, env=environ, stdout=log, stderr=log, start_new_session=True)
        (home / "job").write_text(json.dumps([words[words.index("--name") + 1], job.pid]))
    case ["jobs", "queue", *_]:
        name, pid = json.loads((home / "job").read_text())
        state = "SUCCEEDED" if (home / "status").exists() else "RUNNING"
        print("Managed jobs", json.dumps([{{"job_name": name, "status": state}}]))
    case ["jobs", "cancel", *_]:
        os.killpg(json.loads((home / "job").read_text())[1], signal.SIGKILL)
        (home / "status").write_text("cancelled")
"""


@pytest.fixture
def sky(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `sky` that runs the job on this machine, with this folder as its home."""
    machine, tool = tmp_path / "machine", tmp_path / "bin" / "sky"
    machine.mkdir()
    tool.parent.mkdir()
    tool.write_text(SKY.format(python=sys.executable, home=str(machine)))
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return machine


@pytest.mark.slow
def test_a_run_on_rented_machines_is_followed_through_its_mirror(
    make_run: Callable[..., RunDir],
    bucket: Bucket,  # noqa: F811
    sky: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr("flowloom.launchers.follow.PULL_EVERY_S", 0.0)
    with pytest.raises(RunError, match=r"no disk in common with this one: set mirror\.url"):
        follow(make_run("alone"), "skypilot:aws", LaunchSettings())
    run_dir = make_run("run", **bucket.sections(limits={"max_steps": 4}))
    follow(run_dir, "skypilot:aws", LaunchSettings())
    there = RunDir(sky / "flowloom-runs" / "run")
    assert '"infra": "aws"' in (run_dir.path / "launch" / "task.yaml").read_text()
    assert run_dir.events_jsonl.read_bytes() == there.events_jsonl.read_bytes()
    assert "finished" in {event["kind"] for event in read_events(run_dir.events_jsonl)}
    files = [path.relative_to(there.path) for path in there.checkpoint_dir(4).rglob("*.*")]
    assert files
    assert all((run_dir.path / file).read_bytes() == (there.path / file).read_bytes() for file in files)
    # A stop cancels the job; what was mirrored is here.
    (sky / "status").unlink()
    long = make_run("long", **bucket.sections(limits={"max_steps": 10**6}))
    waiter = threading.Thread(target=follow, args=(long, "skypilot:aws", LaunchSettings()))
    waiter.start()
    await_events(long, "saved", 1)
    long.request("stop")
    waiter.join(60)
    assert not waiter.is_alive()
    assert long.latest_checkpoint()


def test_enabled_clouds_are_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SKY_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / ".sky").mkdir()
    with closing(sqlite3.connect(tmp_path / ".sky" / "state.db")) as base, base:
        base.execute("CREATE TABLE config (key TEXT PRIMARY KEY, value TEXT)")
        for key, clouds in (
            ("enabled_clouds_default_compute", ["GCP", "AWS"]),
            ("enabled_clouds_default_storage", ["R2"]),
            ("allowed_clouds_default", ["Azure"]),
        ):
            base.execute("INSERT INTO config VALUES (?, ?)", (key, json.dumps(clouds)))
    assert SkyPilot().places() == [], "without the tool"
    (tmp_path / "sky").touch(0o755)
    assert SkyPilot().places() == ["skypilot:aws", "skypilot:gcp"]
    (tmp_path / ".sky" / "state.db").write_bytes(b"damaged" * 1000)
    with pytest.raises(RunError, match="the enabled clouds cannot be read"):
        SkyPilot().places()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("sky") is None, reason="sky is not installed: pip install skypilot")
def test_the_clouds_that_skypilot_itself_enabled_are_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    enable = (
        "from sky import global_user_state; from sky.clouds import CloudCapability as Can; "
        "global_user_state.set_enabled_clouds(['AWS', 'GCP'], Can.COMPUTE, 'default')"
    )
    monkeypatch.setenv("HOME", str(tmp_path))
    python = Path(shutil.which("sky") or "").with_name("python")
    subprocess.run([python, "-c", enable], check=True, timeout=120)
    assert SkyPilot().places() == ["skypilot:aws", "skypilot:gcp"]


def steps_of(machine: Path, kind: str, field: str) -> list[int | None]:
    events = read_events(machine / "flowloom-runs" / "run" / "events.jsonl")
    return [event[field] for event in events if event["kind"] == kind]


def start(script: str, home: Path) -> subprocess.Popen[bytes]:
    """Run a task's commands with SkyPilot's variables."""
    sky = {"SKYPILOT_NODE_RANK": "0", "SKYPILOT_NODE_IPS": "127.0.0.1", "SKYPILOT_TASK_ID": "task-1"}
    python = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    with (home / "log").open("wb") as log:
        return subprocess.Popen(
            ["bash", "-c", script],
            env={**os.environ, **sky, **python, "HOME": str(home)},
            stdout=log,
            stderr=log,
        )
