"""Runs on a Ray cluster: the driver, and a real cluster of two nodes on this machine."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flowloom.cli.main import main
from flowloom.engine.__main__ import run_engine
from flowloom.launchers.base import Job, JobRecord
from flowloom.launchers.ray import Ray
from flowloom.run.directory import RunDir
from flowloom.run.events import read_events
from tests.engine import ray_cluster
from tests.engine.test_slurm import await_events, losses, num_steps, status


def test_the_driver_is_python_that_names_nodes_ranks_and_resources(tmp_path: Path):
    run_dir = RunDir.create("fox", tmp_path)
    (text,) = Ray().files(run_dir, Job(4, 8), {}).values()
    constants = {
        target.id if isinstance(target, ast.Name) else "": statement.value
        for statement in ast.parse(text).body
        if isinstance(statement, ast.Assign)
        for target in statement.targets
    }
    command = ast.literal_eval(constants["TORCHRUN"])
    assert command[command.index("--nnodes") + 1] == "4"
    assert command[command.index("--nproc-per-node") + 1] == "8"
    assert ast.literal_eval(constants["STOP"]) == f"{tmp_path}/fox/control/stop"
    assert "ID, NODES, CPUS, GPUS, WAIT_S, JOIN_S = 'fox', 4, 8, 8, 86400, 600" in text


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("partition=gpu", "--on ray has no option 'partition'"),
        ("cpus=many", "--option cpus=many: write a whole number above 0"),
    ],
)
def test_options_that_cannot_be_used_are_rejected(
    option: str, message: str, make_run: Callable[..., RunDir], capsys: pytest.CaptureFixture[str]
):
    run = make_run()
    assert main(["launch", "--on", "ray", str(run.path), "--option", option]) == 2
    assert message in capsys.readouterr().err
    assert not (run.path / "launch").exists()


def test_a_dashboard_that_does_not_answer_is_named(
    make_run: Callable[..., RunDir], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    run = make_run()
    record = JobRecord(
        launcher="ray", job_id="a", nodes=1, gpus=0, options={"address": "http://127.0.0.1:9"}, submitted=0
    )
    (run.path / "launch").mkdir()
    (run.path / "launch" / "job.json").write_text(record.model_dump_json())
    assert main(["resume", str(run.path)]) == 2
    assert "http://127.0.0.1:9/api/jobs/a: Ray's dashboard does not answer" in capsys.readouterr().err


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[ray_cluster.Cluster]:
    if reason := ray_cluster.why_not():
        pytest.skip(reason)
    with ray_cluster.ray_cluster() as cluster:
        monkeypatch.setenv("RAY_API_SERVER_ADDRESS", cluster.address)
        yield cluster


@pytest.mark.slow
def test_two_nodes_train_as_one_rank_does_stop_with_a_checkpoint_and_resume(
    ray: ray_cluster.Cluster,
    make_run: Callable[..., RunDir],
    capsys: pytest.CaptureFixture[str],
):
    alone, fox = make_run("alone", limits={"max_steps": 6}), make_run("fox", limits={"max_steps": 100_000})
    launch = ["launch", "--on", "ray", str(fox.path), "--nodes", "2", "--option", f"python={ray.python}"]
    assert main(launch) == 0
    run_engine(alone)
    await_events(fox, "step", 6)
    shown = status(fox, capsys)
    assert (shown["state"], shown["detail"]) == ("running", "RUNNING")
    assert main(["resume", str(fox.path)]) == 2
    assert "is submitted to Ray as job fox-" in capsys.readouterr().err
    assert main(["launch", "stop", str(fox.path)]) == 0
    await_events(fox, "stopped", 1)
    ray.await_end(json.loads((fox.path / "launch" / "job.json").read_text())["job_id"])
    assert status(fox, capsys)["detail"] == "SUCCEEDED"
    assert losses(fox)[:6] == pytest.approx(losses(alone), rel=1e-5)

    stopped_at = num_steps(fox)
    assert main([*launch, "--training.save_every", "1"]) == 0
    await_events(fox, "step", stopped_at + 2)
    ray_cluster.kill(ray.other)
    await_events(fox, "failed", 1)
    ray.await_end(json.loads((fox.path / "launch" / "job.json").read_text())["job_id"])
    assert status(fox, capsys)["detail"] == "FAILED"
    assert sum(event["kind"] == "failed" for event in read_events(fox.events_jsonl)) == 1
    assert fox.latest_checkpoint() is not None
