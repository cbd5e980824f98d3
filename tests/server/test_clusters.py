"""Runs that the studio submits to a real Slurm cluster."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flowloom.cli.main import main
from flowloom.config.run import RunConfig
from flowloom.run.directory import RunDir
from flowloom.server.runs.clusters import update_clusters
from flowloom.server.runs.queue import Queue
from flowloom.server.runs.registry import RunRegistry
from flowloom.server.runs.store import RunStore
from flowloom.server.runs.view import RunView
from flowloom.tasks import ALL as TASKS
from flowloom.trainers import ALL
from tests.engine.slurm_cluster import await_no_jobs, slurm  # noqa: F401 -- a fixture
from tests.server.conftest import Studio, wait_for

Configs = Callable[..., dict[str, Any]]
LATER = {"begin": "now+1hour"}


def has_job(studio: Studio, name: str, state: str) -> Any:
    run = studio.run(name)
    return run if run["job"] and run["job"]["state"] == state else None


@pytest.mark.slow
def test_a_run_of_the_studio_waits_trains_saves_stops_and_finishes_on_slurm(
    slurm: dict[str, str],  # noqa: F811
    studio_at: Callable[..., Studio],
    tiny_config: Configs,
):
    studio = studio_at().start()
    (cluster,) = wait_for(lambda: studio.get("/api/queue")["clusters"])
    assert (cluster["device"], cluster["title"]) == ("slurm:all", "Slurm: all partition")
    body = {"name": "fox", "config": tiny_config(limits={"max_steps": 10**6}), "devices": ["slurm:all"]}
    for wrong, where in (
        ({"devices": ["slurm:none"]}, "/devices"),
        ({"devices": ["slurm:all", "cpu"]}, "/devices"),
        ({"launch": {"options": {"output": "/etc/profile"}}}, "/launch/options"),
    ):
        refused = studio.post("/api/flow/train/start", body | wrong, 422)
        assert refused["errors"][0]["where"] == where, refused

    studio.post("/api/flow/train/start", body | {"launch": {"nodes": 2, "options": LATER}}, 201)
    waiting = wait_for(lambda: has_job(studio, "fox", "pending"))
    assert (waiting["state"], waiting["phase"], waiting["devices"]) == ("running", "pending", ["slurm:all"])
    assert waiting["job"]["detail"] in ("", "PENDING (BeginTime)")
    studio.post("/api/runs/fox/control", {"action": "sample"}, 409)
    studio.post("/api/runs/fox/stop")
    assert studio.wait("fox", "stopped")["job"]["detail"] == "CANCELLED"

    studio.post("/api/runs/fox/resume", {"launch": {"nodes": 2}})
    wait_for(lambda: has_job(studio, "fox", "running") and studio.run("fox")["step"] >= 2)
    studio.post("/api/runs/fox/control", {"action": "checkpoint"})
    wait_for(lambda: any(event["kind"] == "saved" for event in studio.events("fox")))
    studio.post("/api/runs/fox/stop")
    stopped_at = studio.wait("fox", "stopped")["step"]

    limit = {"limits": {"max_steps": stopped_at + 2}}
    studio.post("/api/runs/fox/resume", {"changes": limit})
    finished = studio.wait("fox", "finished")
    assert (finished["step"], finished["job"]["state"], finished["job"]["detail"]) == (
        stopped_at + 2, "ended", "COMPLETED",
    )  # fmt: skip
    assert "--nodes=2" in (studio.home / "runs" / "fox" / "launch" / "job.sbatch").read_text()

    studio.post("/api/flow/train/start", body | {"name": "owl", "launch": {"options": LATER}}, 201)
    wait_for(lambda: has_job(studio, "owl", "pending"))
    studio.post("/api/runs/owl/kill")
    studio.wait("owl", "stopped")
    await_no_jobs(slurm)


@pytest.mark.slow
def test_a_job_that_was_submitted_by_hand_is_followed_and_not_started_again(
    slurm: dict[str, str],  # noqa: F811
    make_config: Callable[..., RunConfig],
    tmp_path: Path,
):
    run_dir = RunDir.create("fox", tmp_path / "runs")
    run_dir.write_run(make_config(), "a test")
    (tmp_path / "locks").mkdir()
    registry = RunRegistry(tmp_path / "runs", RunStore(tmp_path / "studio.sqlite"))
    queue = Queue(registry, {**ALL, **TASKS}, ["cpu"], tmp_path)
    assert main(["launch", "--on", "slurm", str(run_dir.path), "--option", "begin=now+1hour"]) == 0
    registry.refresh_all()
    update_clusters(queue)

    def pending() -> RunView | None:
        queue.tick()
        view = registry.refresh("fox")
        return view if view.state == "running" and view.phase == "pending" else None

    wait_for(pending)
    jobs = subprocess.run(["squeue", "--noheader"], capture_output=True, text=True, check=True).stdout
    assert len(jobs.splitlines()) == 1
    queue.stop("fox", save=True)

    def stopped() -> bool:
        queue.tick()
        return registry.refresh("fox").state == "stopped"

    wait_for(stopped)
    await_no_jobs(slurm)


def test_a_cluster_that_does_not_answer_keeps_the_queue_and_its_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "runs").mkdir()
    tool = tmp_path / "sinfo"
    tool.write_text("#!/bin/sh\necho 'sinfo: error: Unable to contact slurm controller' >&2\nexit 1\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    registry = RunRegistry(tmp_path / "runs", RunStore(tmp_path / "studio.sqlite"))
    queue = Queue(registry, ALL, ["cpu"], tmp_path)
    queue.places = ("slurm:gpu",)
    update_clusters(queue)
    assert queue.places == ("slurm:gpu",)
