"""Rules for every task, and for the way they run."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flowloom.config.run import RunConfig
from flowloom.run.directory import RunDir
from flowloom.tasks import ALL
from flowloom.tasks.base import FormTask
from tests.engine.conftest import make_config, synthetic_data  # noqa: F401 -- fixtures

EVERY = pytest.mark.parametrize("task", ALL.values(), ids=list(ALL))


@EVERY
def test_unknown_keys_are_reported(task: FormTask[Any]) -> None:
    assert "no_such_key" in {problem.where for problem in task.check({"no_such_key": 1})}


@EVERY
def test_defaults_fit_the_schema(task: FormTask[Any]) -> None:
    assert task.defaults().keys() <= task.schema()["properties"].keys()


@EVERY
def test_every_field_has_its_help(task: FormTask[Any]) -> None:
    if task.config_type is not RunConfig:
        fields = task.schema()["properties"].items()
        assert not [name for name, field in fields if not field.get("description")]


def test_no_task_imports_anything_heavy() -> None:
    heavy = ["torch", "transformers", "onnxruntime", "huggingface_hub", "pyarrow", "PIL"]
    code = f"import sys, flowloom.tasks; sys.exit(str([name for name in {heavy} if name in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "[]"


def test_a_cache_is_filled_in_a_run_that_reports_its_results(
    make_config: Callable[..., RunConfig],  # noqa: F811
    tmp_path: Path,
) -> None:
    config = make_config(cache={"latents": "disk", "text": "disk", "dir": str(tmp_path / "cache")})
    run_dir, task = RunDir.create("fill", tmp_path), ALL["cache"]
    task.prepare(config.model_dump(mode="json"), run_dir, "a test")
    for _again in range(2):
        subprocess.run(task.command(run_dir, resume=False).argv, check=True, cwd=tmp_path)
    events = [json.loads(line) for line in run_dir.events_jsonl.read_text().splitlines()]
    kinds = [event["kind"] for event in events]
    assert kinds.count("finished") == 2
    phases = [event["name"] for event in events if event["kind"] == "phase"]
    assert phases[:3] == ["loading", "images", "captions"]
    done = [event for event in events if event["kind"] == "progress"]
    assert done[0]["max_steps"] >= done[0]["step"] >= 1
    result = json.loads((run_dir.path / "result.json").read_text())
    assert result["images"] == result["captions"] == 0, "the second time there was nothing left to do"


def test_a_task_that_fails_says_why(make_config: Callable[..., RunConfig], tmp_path: Path) -> None:  # noqa: F811
    config = make_config(cache={"latents": "off", "text": "off"})
    run_dir, task = RunDir.create("fill", tmp_path), ALL["cache"]
    task.prepare(config.model_dump(mode="json"), run_dir, "a test")
    done = subprocess.run(task.command(run_dir, resume=False).argv, check=False, capture_output=True)
    assert done.returncode == 2
    last = json.loads(run_dir.events_jsonl.read_text().splitlines()[-1])
    assert last["kind"] == "failed"
    assert "cache.latents" in last["message"]
