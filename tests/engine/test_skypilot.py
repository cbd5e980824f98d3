"""Runs by SkyPilot: the task as SkyPilot's own parser reads it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from flowloom.cli.main import main
from flowloom.errors import RunError
from flowloom.launchers.base import Job
from flowloom.launchers.skypilot import store_run, task
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
