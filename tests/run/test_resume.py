import errno
import json
import os
from pathlib import Path

import pytest

from flowloom.config.flow_format.read import read_config
from flowloom.errors import ConfigError
from flowloom.files import write_json
from flowloom.run.directory import RunDir
from flowloom.run.resume import change_by_flags


@pytest.fixture
def run_dir(write, tmp_path):
    loaded = read_config(write({"training": {"lr": 1e-4}, "limits": {"max_steps": 10}, "lora": {"rank": 4}}))
    run_dir = RunDir.create("run", tmp_path)
    run_dir.write_run(loaded.config, "config.json")
    return run_dir


def test_a_run_continues_unchanged_without_flags(run_dir):
    before = run_dir.run_json.read_bytes()
    assert change_by_flags(run_dir, []).config == run_dir.read_config()
    assert run_dir.run_json.read_bytes() == before


def test_a_changed_run_says_what_was_changed(run_dir):
    change_by_flags(run_dir, [("limits.max_steps", "20"), ("training.lr", "1e-4")])
    change_by_flags(run_dir, [("training.lr", "5e-5")])
    assert run_dir.read_config().limits.max_steps == 20
    assert run_dir.read_config().training.lr == 5e-5
    assert [change["changes"] for change in run_dir.read_run()["changed"]] == [
        {"limits.max_steps": {"from": 10, "to": 20}},
        {"training.lr": {"from": 1e-4, "to": 5e-5}},
    ]


@pytest.mark.parametrize(
    ("flag", "text"),
    [
        ("lora.rank", "8"),
        ("dataloader.batch_size", "3"),
        ("training.master_seed", "1"),
        ("optimizer.kind", "adamw8bit"),
        ("method.kind", "dora"),
        ("lora", "null"),
    ],
)
def test_settings_that_the_checkpoints_depend_on_cannot_change(run_dir, flag, text):
    before = run_dir.run_json.read_bytes()
    with pytest.raises(ConfigError, match="start a new run"):
        change_by_flags(run_dir, [(flag, text)])
    assert run_dir.run_json.read_bytes() == before


def test_a_token_by_flag_is_handed_on_and_not_recorded(run_dir):
    loaded = change_by_flags(run_dir, [("training.hf_token", "hf_topsecret"), ("hub.repo_id", "a/b")])
    assert loaded.secrets["HF_TOKEN"] == "hf_topsecret"
    assert "topsecret" not in run_dir.run_json.read_text()
    assert json.loads(run_dir.run_json.read_text())["config"]["hub"]["repo_id"] == "a/b"


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_change_that_fails_leaves_run_json_complete(run_dir, monkeypatch, failing):
    before = run_dir.run_json.read_bytes()

    def fail(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    target = {"fsync": (os, "fsync"), "replace": (Path, "replace")}[failing]
    monkeypatch.setattr(*target, fail)
    with pytest.raises(OSError, match="No space"):
        change_by_flags(run_dir, [("limits.max_steps", "20")])
    assert run_dir.run_json.read_bytes() == before


def test_a_change_keeps_the_rest_of_run_json_and_writes_it_once(run_dir, monkeypatch):
    content = run_dir.read_run() | {"created": 7.0, "folders": {"checkpoints": {"/x": 1.0}}}
    write_json(run_dir.run_json, content)
    replaced = []
    replace = Path.replace
    monkeypatch.setattr(Path, "replace", lambda path, to: replaced.append(to) or replace(path, to))
    change_by_flags(run_dir, [("limits.max_steps", "20")])
    assert replaced == [run_dir.run_json]
    after = run_dir.read_run()
    assert after.pop("changed")
    assert after.pop("config")["limits"]["max_steps"] == 20
    assert after == {name: value for name, value in content.items() if name != "config"}
