import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from flowloom.config.run import RunConfig
from flowloom.errors import RunError
from flowloom.files import write_json
from flowloom.run.directory import RunDir, default_name


@pytest.fixture
def run_dir(tmp_path):
    run_dir = RunDir.create("one", tmp_path / "runs")
    run_dir.write_run(RunConfig(), "config.json")
    return run_dir


def test_a_configuration_survives_run_json(tmp_path):
    config = RunConfig.model_validate(
        {
            "training": {"lr": 3e-4, "master_seed": 7},
            "lora": {"rank": 4},
            "optimizer": {"kind": "adamw", "betas": [0.9, 0.95]},
        }
    )
    run_dir = RunDir.create("a", tmp_path)
    run_dir.write_run(config, "mine.json", ["a note"])
    assert RunDir.open(run_dir.path).read_config() == config
    recorded = run_dir.read_run()
    assert recorded["seed"] == 7
    assert recorded["source"] == "mine.json"
    assert recorded["notes"] == ["a note"]
    assert {"flowloom", "python", "torch"} <= recorded["versions"].keys()


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "-x", "a b", "x" * 101, "ä", "a\n"])
def test_a_name_that_could_leave_the_folder_is_refused(tmp_path, name):
    with pytest.raises(RunError, match="is not a valid run name"):
        RunDir.create(name, tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_an_existing_run_is_never_overwritten(run_dir):
    with pytest.raises(RunError, match="flowloom resume"):
        RunDir.create("one", run_dir.path.parent)


def test_opening_no_run_names_those_beside_it(run_dir):
    with pytest.raises(RunError, match="In its folder: one"):
        RunDir.open(run_dir.path.parent / "two")


def test_a_run_of_another_schema_is_refused_by_name(run_dir):
    content = json.loads(run_dir.run_json.read_text())
    content["config"]["training"]["momentum"] = 1
    write_json(run_dir.run_json, content)
    with pytest.raises(RunError, match="momentum"):
        run_dir.read_config()


def test_the_newest_complete_checkpoint_is_found(run_dir):
    assert run_dir.latest_checkpoint() is None
    for step in (100, 9, 20000):
        run_dir.checkpoint_dir(step).mkdir()
    (run_dir.path / "checkpoints" / "step_00030000.tmp").mkdir()
    (run_dir.path / "checkpoints" / "step_latest").mkdir()
    assert [folder.name for folder in run_dir.checkpoints()] == [
        "step_00000009",
        "step_00000100",
        "step_00020000",
    ]
    assert run_dir.latest_checkpoint() == run_dir.checkpoint_dir(20000)


def test_a_request_is_taken_once(run_dir):
    assert not run_dir.take_control("stop")
    run_dir.request("stop")
    assert not run_dir.take_control("sample")
    assert run_dir.take_control("stop")
    assert not run_dir.take_control("stop")


def test_leftovers_and_old_requests_are_cleared_by_the_next_engine(run_dir):
    leftover = run_dir.path / "checkpoints" / "step_00000001.tmp"
    leftover.mkdir()
    (leftover / "model.safetensors").write_bytes(b"half")
    (run_dir.path / "run.json.tmp").write_text("{")
    run_dir.checkpoint_dir(1).mkdir()
    run_dir.request("stop")
    with run_dir.locked():
        assert not leftover.exists()
        assert not (run_dir.path / "run.json.tmp").exists()
        assert run_dir.checkpoint_dir(1).exists()
        assert not run_dir.take_control("stop")


def test_a_second_engine_is_refused_and_a_killed_one_frees_the_directory(run_dir):
    code = f"""
        import time
        from flowloom.run.directory import RunDir
        with RunDir({str(run_dir.path)!r}).locked():
            print("locked", flush=True)
            time.sleep(60)
    """
    assert not run_dir.is_running()
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True
    ) as engine:
        assert engine.stdout
        assert engine.stdout.readline() == "locked\n"
        assert run_dir.is_running()
        assert json.loads(run_dir.pid_json.read_text())["pid"] == engine.pid
        with pytest.raises(RunError, match=f"in use by process {engine.pid} on"), run_dir.locked():
            pass
        engine.send_signal(signal.SIGKILL)
        engine.wait()
    assert not run_dir.is_running()
    with run_dir.locked():
        assert json.loads(run_dir.pid_json.read_text())["pid"] == os.getpid()


def test_json_is_complete_or_not_there_at_all(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": 1}


def test_a_default_name_is_a_legal_one(tmp_path):
    name = default_name("my config (2)")
    assert name.startswith("my-config-2-")
    RunDir.create(name, tmp_path)
    assert time.strftime("%Y") in name
    RunDir.create(default_name("..."), tmp_path)
    assert Path(tmp_path / name).is_dir()
