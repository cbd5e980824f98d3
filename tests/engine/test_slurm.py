"""Runs on a Slurm cluster: the batch script, and a real cluster of two nodes on this machine."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from flowloom.cli.main import main
from flowloom.config.run import RunConfig
from flowloom.errors import RunError
from flowloom.launchers.base import Job, output_of
from flowloom.launchers.jobs import record_time_limit
from flowloom.launchers.slurm import Slurm, script
from flowloom.run.directory import RunDir
from flowloom.run.events import FIELDS, EventWriter, read_events
from tests.engine import slurm_cluster as cluster
from tests.engine.slurm_cluster import slurm  # noqa: F401 -- a fixture
from tests.fakes.onnx_tagger import write_tagger
from tests.tasks.tagging.conftest import BLUE, paint


def test_the_script_starts_one_torchrun_on_each_node(tmp_path: Path):
    run_dir = RunDir.create("fox", tmp_path)
    text = script(run_dir, Job(4, 8, options={"partition": "gpu", "time": "12:00:00", "exclusive": ""}), {})
    lines = [line[10:].partition("=") for line in text.splitlines() if line.startswith("#SBATCH --")]
    options = {name: value for name, _, value in lines}
    assert options == {
        "job-name": "fox",
        "nodes": "4",
        "ntasks-per-node": "1",
        "gpus-per-node": "8",
        "output": f"{tmp_path}/fox/launch/slurm-%j.log",
        "open-mode": "append",
        "signal": "B:USR1@120",
        "partition": "gpu",
        "time": "12:00:00",
        "exclusive": "",
    }
    assert "torch.distributed.run --nnodes 4 --nproc-per-node 8 --rdzv-backend c10d" in text
    assert f"-m flowloom.engine {tmp_path}/fox" in text
    assert subprocess.run(["bash", "-n"], input=text, text=True, check=False).returncode == 0


def test_without_gpus_one_process_is_started_on_each_node(tmp_path: Path):
    text = script(RunDir.create("fox", tmp_path), Job(2), {})
    assert "--nproc-per-node 1 " in text
    assert "gpus-per-node" not in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nodes": "3"}, "sbatch's option nodes is set by Flowloom"),
        ({"partition\n#SBATCH": "x"}, "is not a long option of sbatch"),
        ({"comment": "a\nrm -rf /"}, "has a line break"),
        ({"on-time-limit": "again"}, "is stop or requeue, not 'again'"),
        ({"seconds-to-save": "0"}, "is a number of seconds from 1 to 65535"),
    ],
)
def test_options_that_cannot_be_used_are_rejected(tmp_path: Path, options: dict[str, str], message: str):
    with pytest.raises(RunError, match=message):
        script(RunDir.create("fox", tmp_path), Job(options=options), {})


def test_a_dry_run_prints_the_script_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    Path("fox.json").write_text("{}")
    assert main(["launch", "slurm", "fox.json", "--nodes", "2", "--name", "fox", "--dry-run"]) == 0
    assert "#SBATCH --nodes=2\n" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["fox.json"]


def test_a_machine_without_slurm_is_named(
    make_run: Callable[..., RunDir], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    run_dir = make_run()
    monkeypatch.setenv("PATH", "/nowhere")
    assert main(["launch", "slurm", str(run_dir.path)]) == 2
    assert "sbatch is not installed here. Run this on a login node" in capsys.readouterr().err


@pytest.mark.slow
def test_two_nodes_train_as_two_ranks_of_one_do_and_continue_after_a_node_died(
    slurm: dict[str, str],  # noqa: F811
    make_run: Callable[..., RunDir],
    make_config: Callable[..., RunConfig],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    alone = make_run("alone", limits={"max_steps": 6})
    assert main(["launch", "--on", "local", str(alone.path), "--processes", "2"]) == 0
    config = tmp_path / "fox.json"
    sections = make_config(limits={"max_steps": 100_000}, training={"save_every": 1})
    config.write_text(sections.model_dump_json())
    arguments = ["--nodes", "2", "--name", "fox", "--runs-dir", str(tmp_path / "runs")]
    assert main(["launch", "slurm", str(config), *arguments]) == 0
    fox = RunDir.open(tmp_path / "runs" / "fox")
    job_id = json.loads((fox.path / "launch" / "job.json").read_text())["job_id"]
    assert f"job        {job_id}\n" in capsys.readouterr().out
    await_events(fox, "step", 6)
    assert status(fox, capsys)["state"] == "running"
    for again in (["launch", "--on", "slurm", str(fox.path)], ["resume", str(fox.path)]):
        assert main(again) == 2
        assert f"is submitted to Slurm as job {job_id}: RUNNING" in capsys.readouterr().err
    cluster.kill_tasks_of("n2")
    cluster.await_no_jobs(slurm)
    shown = status(fox, capsys)
    assert (shown["state"], shown["event"]) == ("ended", "failed"), shown
    await_events(alone, "finished", 1)
    assert losses(fox)[:6] == pytest.approx(losses(alone), rel=1e-6)
    assert status(alone, capsys)["event"] == "finished"

    assert main(["launch", "slurm", str(fox.path), "--nodes", "2"]) == 0
    await_events(fox, "step", len(losses(fox)) + 2)
    assert main(["launch", "stop", str(fox.path)]) == 0
    await_events(fox, "stopped", 1)
    cluster.await_no_jobs(slurm)
    assert status(fox, capsys) | {"job": ""} == {
        "launcher": "slurm", "job": "", "state": "ended", "detail": "COMPLETED", "event": "stopped",
    }  # fmt: skip
    (resumed_from,) = [
        event["resumed_from"]
        for event in read_events(fox.events_jsonl)
        if event["kind"] == "started" and event["resumed_from"]
    ]
    assert resumed_from >= 4  # the checkpoint of the step before may still have been on its way


@pytest.mark.slow
def test_two_nodes_tag_every_image_once(
    slurm: dict[str, str],  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    tagger = write_tagger(tmp_path / "tagger")
    paint(tmp_path / "images", **{f"p{i:02d}": BLUE for i in range(20)})
    assert main(["tag", "images", "--model", str(tagger), "--name", "tags", "--create-only"]) == 0
    assert capsys.readouterr().out == "runs/tags\n"
    assert main(["launch", "--on", "slurm", "runs/tags", "--nodes", "2"]) == 0
    run_dir = RunDir.open(tmp_path / "runs" / "tags")
    await_events(run_dir, "finished", 1)
    result = json.loads((run_dir.path / "result.json").read_text())
    assert (result["num_written"], result["model"]["processes"]) == (20, 2)
    assert len(list((tmp_path / "images").glob("*.txt"))) == 20
    cluster.await_no_jobs(slurm)
    assert status(run_dir, capsys)["detail"] == "COMPLETED"
    assert main(["launch", "--on", "skypilot", "runs/tags"]) == 2
    assert "a disk that all machines share" in capsys.readouterr().err


@pytest.mark.slow
def test_a_job_at_its_time_limit_saves_and_is_queued_again_or_says_so(
    slurm: dict[str, str],  # noqa: F811
    make_run: Callable[..., RunDir],
    capsys: pytest.CaptureFixture[str],
):
    """Slurm's signal before the limit is sent by hand: a limit has at least a minute."""
    run = make_run(limits={"max_steps": 100_000}, training={"save_every": 1000})
    launch = ["launch", "slurm", str(run.path), "--option", "seconds-to-save=60", "--option", "time=10"]
    assert main([*launch, "--option", "on-time-limit=requeue"]) == 0
    job_id = status(run, capsys)["job"]
    signal = ["scancel", "--batch", "--signal=USR1", job_id]
    await_events(run, "step", 3)
    subprocess.run(signal, check=True)
    await_events(run, "warning", 1)
    (stopped,) = (event["step"] for event in read_events(run.events_jsonl) if event["kind"] == "stopped")
    (warning,) = (event for event in read_events(run.events_jsonl) if event["kind"] == "warning")
    assert f"The job is queued again, and continues from step {stopped}." in warning["message"]
    # The same job, on its own; the studio follows it as one that waits.
    await_events(run, "started", 2)
    await_events(run, "step", num_steps(run) + 2)
    shown = status(run, capsys)
    assert (shown["job"], shown["state"]) == (job_id, "running")
    (resumed_from,) = [
        event["resumed_from"]
        for event in read_events(run.events_jsonl)
        if event["kind"] == "started" and event["resumed_from"]
    ]
    assert resumed_from == stopped
    assert sorted(losses(run)) == sorted(set(losses(run))), "no step twice"
    assert main(["launch", "stop", str(run.path)]) == 0
    await_events(run, "stopped", 2)
    cluster.await_no_jobs(slurm)
    assert status(run, capsys)["detail"] == "COMPLETED"
    # Without the option the job ends, and its state says what to do.
    assert main(launch) == 0
    await_events(run, "started", 3)
    await_events(run, "step", num_steps(run) + 1)
    subprocess.run(["scancel", "--batch", "--signal=USR1", status(run, capsys)["job"]], check=True)
    await_events(run, "warning", 2)
    cluster.await_no_jobs(slurm)
    shown = status(run, capsys)
    assert (shown["state"], shown["detail"]) == ("ended", "COMPLETED, time limit reached: resume the run")
    assert list(read_events(run.events_jsonl))[-1]["message"].endswith(
        f"Resume the run: it continues from step {num_steps(run)}."
    )


def test_a_job_that_saved_nothing_new_is_not_queued_again(make_run: Callable[..., RunDir]):
    run = make_run()
    writer = EventWriter(run.events_jsonl)
    writer.write("started", **dict.fromkeys(FIELDS["started"]))
    writer.write("stopped", step=0)
    writer.close()
    assert not record_time_limit(run, is_requeued=True)
    message = list(read_events(run.events_jsonl))[-1]["message"]
    assert "it saved nothing new: give it more time" in message


def test_the_signal_comes_early_enough_to_mirror(tmp_path: Path):
    run_dir = RunDir.create("fox", tmp_path)
    mirrored = {"mirror": {"url": "s3://bucket/runs", "seconds_to_finish": 300}}
    assert "--signal=B:USR1@360\n" in script(run_dir, Job(), mirrored)
    options = {"seconds-to-save": "600", "on-time-limit": "requeue"}
    text = script(run_dir, Job(options=options), mirrored)
    assert "--signal=B:USR1@600\n" in text
    assert "#SBATCH --requeue\n" in text
    assert text.rstrip().splitlines()[-2].endswith('--requeue && scontrol requeue "$SLURM_JOB_ID"')
    assert not {"--seconds-to-save", "--on-time-limit"} & set(text.split())


@pytest.mark.slow
def test_a_waiting_job_is_cancelled_and_keeps_other_machines_from_the_run(
    slurm: dict[str, str],  # noqa: F811
    make_run: Callable[..., RunDir],
    capsys: pytest.CaptureFixture[str],
):
    run = make_run()
    assert main(["launch", "slurm", str(run.path), "--option", "begin=now+1hour"]) == 0
    shown = status(run, capsys)
    assert (shown["state"], shown["detail"]) == ("pending", "PENDING (BeginTime)")
    assert main(["resume", str(run.path)]) == 2
    assert "PENDING (BeginTime)" in capsys.readouterr().err
    assert main(["launch", "stop", str(run.path)]) == 0
    assert "it is cancelled" in capsys.readouterr().out
    cluster.await_no_jobs(slurm)
    shown = status(run, capsys)
    assert (shown["state"], shown["detail"]) == ("ended", "CANCELLED")
    assert [event["kind"] for event in read_events(run.events_jsonl)] == ["stopped"]
    assert main(["launch", "slurm", str(run.path), "--option", "begin=now+1hour"]) == 0
    job_id = status(run, capsys)["job"]
    subprocess.run(["scancel", job_id], check=True)
    assert status(run, capsys)["event"] == "failed"
    failed = list(read_events(run.events_jsonl))[-1]
    assert failed["message"] == f"Slurm ended job {job_id}: CANCELLED."
    assert "Launch the run directory again: the run starts from step 0" in failed["hint"]


@pytest.mark.slow
def test_a_node_that_does_not_join_fails_the_run_in_time(
    slurm: dict[str, str],  # noqa: F811
    make_run: Callable[..., RunDir],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    run, python = make_run(), tmp_path / "python"
    python.write_text(f"""#!/bin/sh
[ "$SLURMD_NODENAME$2" = n2torch.distributed.run ] && exec sleep 300
exec {sys.executable} "$@"
""")
    python.chmod(0o755)
    arguments = ["--nodes", "2", "--join-timeout", "2", "--python", str(python)]
    assert main(["launch", "slurm", str(run.path), *arguments]) == 0
    await_events(run, "failed", 1)
    assert "Not all nodes joined in time" in list(read_events(run.events_jsonl))[-1]["message"]
    cluster.await_no_jobs(slurm)
    assert status(run, capsys)["event"] == "failed"
    assert sum(event["kind"] == "failed" for event in read_events(run.events_jsonl)) == 1


def test_a_job_that_slurm_refuses_leaves_the_run_free(
    slurm: dict[str, str],  # noqa: F811
    make_run: Callable[..., RunDir],
    capsys: pytest.CaptureFixture[str],
):
    run = make_run()
    assert main(["launch", "slurm", str(run.path), "--option", "partition=none"]) == 2
    assert "Invalid partition name" in capsys.readouterr().err
    assert main(["launch", "status", str(run.path)]) == 2
    assert "was not started by 'flowloom launch'" in capsys.readouterr().err


def status(run_dir: RunDir, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    capsys.readouterr()
    assert main(["launch", "status", str(run_dir.path), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def num_steps(run_dir: RunDir) -> int:
    """The step that the run would continue from, or its newest."""
    return max(event["step"] for event in read_events(run_dir.events_jsonl) if event["kind"] == "step")


def losses(run_dir: RunDir) -> list[float]:
    return [event["loss"] for event in read_events(run_dir.events_jsonl) if event["kind"] == "step"]


def await_events(run_dir: RunDir, kind: str, count: int) -> None:
    for _ in range(1200):
        events = list(read_events(run_dir.events_jsonl)) if run_dir.events_jsonl.exists() else []
        if sum(event["kind"] == kind for event in events) >= count:
            return
        time.sleep(0.1)
    logs = "".join(path.read_text() for path in (run_dir.path / "launch").glob("*.log"))
    raise AssertionError(f"no {count} events of kind {kind}:\n{logs}")


def test_an_invalid_configuration_is_rejected_before_anything_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    config = tmp_path / "fox.json"
    config.write_text('{"training": {"lr": -1}}')
    assert main(["launch", "slurm", str(config), "--dry-run"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "training.lr" in printed.err
    assert main(["launch", "slurm", str(config), "--dry-run", "--node", "2"]) == 2
    assert "there is no option --node" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("said", "is_cluster"),
    [
        ("sinfo: fatal: Could not establish a configuration source", False),
        ("slurm_load_partitions: Unable to contact slurm controller (connect failure)", True),
    ],
)
def test_only_a_cluster_that_does_not_answer_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, *, is_cluster: bool
):
    """Slurm's tools may be installed on a machine that belongs to no cluster."""
    tool = tmp_path / "sinfo"
    tool.write_text(f"#!/bin/sh\necho '{said}' >&2\nexit 1\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    if is_cluster:
        with pytest.raises(RunError, match="Unable to contact slurm controller"):
            Slurm().places()
    else:
        assert Slurm().places() == []


def test_a_tool_that_hangs_is_given_up():
    with pytest.raises(RunError, match="sleep did not answer within 0 s: the cluster's scheduler is down"):
        output_of(["sleep", "30"], 0.2)


def test_a_local_run_uses_one_machine_and_is_not_started_twice(
    make_run: Callable[..., RunDir], capsys: pytest.CaptureFixture[str]
):
    run = make_run()
    assert main(["launch", "--on", "local", str(run.path), "--nodes", "2"]) == 2
    assert "--on local uses this machine only" in capsys.readouterr().err
    with run.locked():
        assert main(["launch", "--on", "local", str(run.path)]) == 2
    assert "is running: stop it first" in capsys.readouterr().err
