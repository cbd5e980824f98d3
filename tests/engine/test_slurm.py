"""Runs on a Slurm cluster: the batch script, and a real cluster of two nodes on this machine."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from flowloom.cli.main import main
from flowloom.config.run import RunConfig
from flowloom.errors import RunError
from flowloom.launchers.slurm import SlurmJob, script
from flowloom.run.directory import RunDir
from flowloom.run.events import read_events
from tests.engine import slurm_cluster as cluster
from tests.engine.test_ranks import run_on_two_ranks


def test_the_script_starts_one_torchrun_on_each_node(tmp_path: Path):
    run_dir = RunDir.create("fox", tmp_path)
    text = script(run_dir, SlurmJob(4, 8, options={"partition": "gpu", "time": "12:00:00"}), "python")
    options = dict(line[10:].split("=", 1) for line in text.splitlines() if line.startswith("#SBATCH --"))
    assert options == {
        "job-name": "fox",
        "nodes": "4",
        "ntasks-per-node": "1",
        "gpus-per-node": "8",
        "output": f"{tmp_path}/fox/launch/slurm-%j.log",
        "signal": "B:TERM@120",
        "partition": "gpu",
        "time": "12:00:00",
    }
    assert "torch.distributed.run --nnodes 4 --nproc-per-node 8 --rdzv-backend c10d" in text
    assert f"-m flowloom.engine {tmp_path}/fox" in text
    assert subprocess.run(["bash", "-n"], input=text, text=True, check=False).returncode == 0


def test_without_gpus_one_process_is_started_on_each_node(tmp_path: Path):
    text = script(RunDir.create("fox", tmp_path), SlurmJob(2))
    assert "--nproc-per-node 1 " in text
    assert "gpus-per-node" not in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nodes": "3"}, "sbatch's option nodes is set by Flowloom"),
        ({"partition\n#SBATCH": "x"}, "is not a long option of sbatch"),
        ({"comment": "a\nrm -rf /"}, "has a line break"),
    ],
)
def test_options_that_cannot_be_used_are_rejected(tmp_path: Path, options: dict[str, str], message: str):
    with pytest.raises(RunError, match=message):
        script(RunDir.create("fox", tmp_path), SlurmJob(options=options))


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
@pytest.mark.skipif(cluster.why_not() is not None, reason=str(cluster.why_not()))
def test_two_nodes_train_as_two_ranks_of_one_do_stop_with_a_checkpoint_and_resume(
    make_run: Callable[..., RunDir],
    make_config: Callable[..., RunConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    alone = make_run("alone", limits={"max_steps": 6})
    run_on_two_ranks(alone)
    config = tmp_path / "fox.json"
    config.write_text(make_config(limits={"max_steps": 100_000}).model_dump_json())
    with cluster.slurm_cluster(tmp_path / "slurm") as environ:
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        arguments = ["--nodes", "2", "--name", "fox", "--runs-dir", str(tmp_path / "runs")]
        assert main(["launch", "slurm", str(config), *arguments]) == 0
        fox = RunDir.open(tmp_path / "runs" / "fox")
        job_id = json.loads((fox.path / "launch" / "slurm.json").read_text())["job_id"]
        assert f"job        {job_id}\n" in capsys.readouterr().out
        await_events(fox, "step", 6)
        subprocess.run(["scancel", "--signal", "TERM", "--batch", job_id], check=True)
        await_events(fox, "stopped", 1)
        cluster.await_no_jobs(environ)
        stopped_at = max(event["step"] for event in read_events(fox.events_jsonl) if event["kind"] == "saved")
        assert main(["launch", "slurm", str(fox.path), "--nodes", "2",
                     "--limits.max_steps", str(stopped_at + 2)]) == 0  # fmt: skip
        await_events(fox, "finished", 1)
        cluster.await_no_jobs(environ)
    assert losses(fox)[:6] == pytest.approx(losses(alone), rel=1e-6)
    assert len(losses(fox)) == stopped_at + 2


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
