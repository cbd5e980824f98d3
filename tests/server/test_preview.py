"""A preview shows the files of a configuration, also of one with problems."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from flowloom.run.directory import RunDir
from flowloom.server.runs.preview import preview
from flowloom.trainers import ALL
from flowloom.trainers.kohya.trainer import TRAINER as KOHYA
from tests.fakes.flow_checkout import flow_checkout  # noqa: F401 -- a fixture
from tests.server.conftest import Studio


def kohya_config(home: Path) -> dict[str, Any]:
    return {
        "family": "chroma",
        "model": {"ae": str(home / "models" / "ae.safetensors")},
        "datasets": [{"subsets": [{"image_dir": str(home / "data" / "fox")}]}],
        "sampling": {"prompts": ["a fox"]},
    }


def test_kohyas_files_are_shown_before_anything_is_there(one_studio: Studio) -> None:
    config = kohya_config(one_studio.home)
    shown = one_studio.post("/api/kohya/config/preview", {"config": config, "name": "fox"})
    files = {one["name"]: one["text"] for one in shown["files"]}
    assert list(files) == ["config.toml", "dataset.toml", "prompts.txt", "run.json"]
    run = one_studio.home / "runs" / "fox"
    arguments = tomllib.loads(files["config.toml"])["arguments"]
    assert arguments["dataset_config"] == str(run / "dataset.toml")
    assert files["prompts.txt"].startswith("a fox --w ")
    assert json.loads(files["run.json"])["config"]["family"] == "chroma"
    assert not run.exists()
    verdict = one_studio.post("/api/kohya/config", {"config": config})
    assert not verdict["is_valid"]
    assert {name: shown[name] for name in verdict} == verdict
    assert shown["command"] is None, "no sd-scripts is here"


def test_a_configuration_that_cannot_be_read_has_no_files(one_studio: Studio) -> None:
    for config in ({"family": "sd9"}, {"model": {"ae": "/etc/passwd"}}):
        shown = one_studio.post("/api/kohya/config/preview", {"config": config})
        assert (shown["files"], shown["command"], shown["is_valid"]) == ([], None, False)


def test_a_preview_has_the_files_and_the_command_of_a_run(one_studio: Studio) -> None:
    shown = one_studio.post("/api/flow/config/preview", {"config": {}, "name": "a-run"})
    run = one_studio.home / "runs" / "a-run"
    assert shown["command"]["argv"][1:] == ["-m", "flowloom.engine", str(run)]
    assert shown["command"]["line"].endswith(f"-m flowloom.engine {run}")


def test_the_trainer_named_here_is_started_by_the_command_that_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = {"kohya": [{"path": str(tmp_path), "python": str(tmp_path / "python")}]}
    (tmp_path / "list.json").write_text(json.dumps(listed))
    monkeypatch.setenv("FLOWLOOM_TRAINERS", str(tmp_path / "list.json"))
    files, command = preview(KOHYA, kohya_config(tmp_path), tmp_path / 'é "q"' / "fox")
    assert tomllib.loads(files["config.toml"])["arguments"]["output_dir"].startswith(f'{tmp_path}/é "q"/fox/')
    run_dir = RunDir.create("fox", tmp_path / 'é "q"')
    KOHYA.prepare(kohya_config(tmp_path), run_dir, "a test")
    assert command == KOHYA.command(run_dir, resume=False)
    for name in ("config.toml", "dataset.toml", "prompts.txt"):
        assert files[name] == (run_dir.path / name).read_text()


def test_flows_configuration_is_shown_as_flow_reads_it(
    tmp_path: Path,
    flow_checkout: Path,  # noqa: F811
) -> None:
    config = {"trainer": "src.trainer.train_chroma", "training": {"lr": 0.5}}
    files, command = preview(ALL["flow-upstream"], config, tmp_path / "runs" / "one")
    assert list(files) == ["flow/training_config.json", "run.json"]
    written = json.loads(files["flow/training_config.json"])
    assert written["training"]["save_folder"] == str(tmp_path / "runs" / "one" / "checkpoints")
    assert command
    assert command.cwd == tmp_path / "runs" / "one" / "flow"
