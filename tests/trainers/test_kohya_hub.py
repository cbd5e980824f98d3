"""Checkpoints of sd-scripts go to the hub by its own upload, and the token by the environment alone."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flowloom.run.directory import RunDir
from flowloom.trainers.kohya.defaults import HUB
from flowloom.trainers.kohya.imports import from_bmaltais, from_toml
from flowloom.trainers.kohya.trainer import TRAINER
from tests.fakes.hub import TOKEN, Hub, hub  # noqa: F401 -- a fixture
from tests.fakes.least_sd_scripts import let_it_take_everything
from tests.fakes.sd_scripts import CHECKOUT, PYTHON, needs_sd_scripts, prepare
from tests.server.conftest import Studio, wait_for

Config = Callable[..., dict[str, Any]]
REPO = {"huggingface_repo_id": "me/fox"}
TELLS = """
if __name__ == "__main__":
    import hashlib, os
    digest = hashlib.sha256(os.environb[b"HF_TOKEN"]).hexdigest()
    print("failed to upload to HuggingFace / x : 401 for", digest)
"""
UPLOAD = """
import argparse, sys, tomllib
from library import huggingface_util, train_util
parser = argparse.ArgumentParser()
train_util.add_training_arguments(parser, False)
stated = tomllib.loads(open(sys.argv[1]).read())["arguments"]
args = argparse.Namespace(**vars(parser.parse_args([])) | stated)
for name in sys.argv[2:]:
    huggingface_util.upload(args, name, "/" + name.rpartition("/")[2])
"""


@pytest.fixture
def token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """The studio's secret."""
    monkeypatch.setenv("FLOWLOOM_SECRETS", str(tmp_path / "kept" / "secrets.json"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "nothing"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return TOKEN


def arguments(config: dict[str, Any], folder: Path) -> tuple[RunDir, dict[str, Any]]:
    run_dir = RunDir.create("run", folder)
    TRAINER.prepare(config, run_dir, "a test")
    return run_dir, tomllib.loads((run_dir.path / "config.toml").read_text())["arguments"]


def test_a_repository_is_named_in_the_toml_and_no_token_anywhere(
    kohya_config: Config, least_checkout: Path, token: str, tmp_path: Path
) -> None:
    run_dir, written = arguments(kohya_config(family="sd15", hub=REPO), tmp_path)
    assert {key: value for key, value in written.items() if "hugging" in key or key == "async_upload"} == {
        "huggingface_repo_id": "me/fox",
        "huggingface_repo_type": "model",
        "huggingface_path_in_repo": "",
        "huggingface_repo_visibility": "private",
        "async_upload": True,
        "save_state_to_huggingface": False,
    }
    command = TRAINER.command(run_dir, resume=False)
    assert token not in json.dumps([command.argv, command.env])
    assert all(token.encode() not in path.read_bytes() for path in run_dir.path.rglob("*") if path.is_file())
    _, written = arguments(kohya_config(family="sd15"), tmp_path / "without")
    assert not [key for key in written if "hugging" in key or key == "async_upload"]


def test_an_impossible_upload_is_reported_before(
    kohya_config: Config, least_checkout: Path, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reported_paths(**keys: Any) -> set[str]:
        found = TRAINER.check(kohya_config(family="sd15", hub=keys))
        return {
            problem.where
            for problem in found
            if problem.where.startswith("hub.") and "--" not in problem.text
        }

    assert reported_paths(**REPO) == set()
    assert reported_paths(save_state_to_huggingface=True) == {"hub.save_state_to_huggingface"}
    assert reported_paths(**REPO, huggingface_path_in_repo="a/../../b") == {"hub.huggingface_path_in_repo"}
    assert reported_paths(huggingface_repo_id="https://huggingface.co/me/fox") == {"hub.huggingface_repo_id"}
    monkeypatch.delenv("HF_TOKEN")
    assert reported_paths(**REPO) == {"hub.huggingface_repo_id"}


@pytest.mark.parametrize("arguments", ["--huggingface_token hf_x", "--resume_from_huggingface"])
def test_no_further_argument_brings_a_token_or_another_state(
    kohya_config: Config, least_checkout: Path, arguments: str
) -> None:
    found = TRAINER.check(kohya_config(family="sd15", raw_arguments=arguments))
    assert any("is set by the studio" in problem.text for problem in found)


def test_a_token_in_an_imported_file_is_dropped_with_a_message() -> None:
    toml = f'huggingface_repo_id = "me/fox"\nhuggingface_token = "{TOKEN}"\nwandb_api_key = "{TOKEN}"'
    form = json.dumps({"huggingface_repo_id": "me/fox", "huggingface_token": TOKEN, "wandb_api_key": TOKEN})
    for found in (from_toml(toml), from_bmaltais(form)):
        assert found.config["hub"] == HUB | REPO, "what is not stated is sd-scripts' default"
        assert TOKEN not in repr(found)
        assert "HF_TOKEN" in found.dropped["huggingface_token"]
        assert "WANDB_API_KEY" in found.dropped["wandb_api_key"]


def test_the_run_gets_the_secret_and_nothing_on_the_disk_holds_it(
    least_checkout: Path, kohya_config: Config, token: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_it_take_everything(least_checkout, "train_network.py")
    with (least_checkout / "train_network.py").open("a") as script:
        script.write(TELLS)
    monkeypatch.delenv("HF_TOKEN")
    studio = Studio(tmp_path / "home", "--root", f"here={tmp_path}").start()
    try:
        assert studio.http.put("/api/secrets/HF_TOKEN", json={"value": token}).status_code < 300
        config = kohya_config(family="sd15", hub=REPO)
        config["model"] = {"pretrained_model_name_or_path": config["model"]["ae"]}
        run = studio.post("/api/kohya/train/start", {"name": "fox", "config": config}, 201)["id"]
        wait_for(lambda: studio.get(f"/api/runs/{run}")["state"] in ("finished", "failed"))
        events = (studio.home / "runs" / run / "events.jsonl").read_text()
    finally:
        studio.end()
    assert f"Not uploaded to the hub: 401 for {hashlib.sha256(token.encode()).hexdigest()}" in events
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "secrets.json"]
    assert len(files) > 10
    assert not [path for path in files if token.encode() in path.read_bytes()]


@needs_sd_scripts
@pytest.mark.slow
def test_the_real_sd_scripts_uploads_with_what_is_written(
    hub: Hub,  # noqa: F811
    kohya_config: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prepare(monkeypatch)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    kept = REPO | {"huggingface_path_in_repo": "loras", "async_upload": False}
    for i, given in enumerate((REPO, kept)):
        run_dir, _ = arguments(kohya_config(family="sd15", hub=given), tmp_path / str(i))
        weights, state = tmp_path / f"{i}.safetensors", tmp_path / f"{i}-state"
        weights.write_bytes(b"weights")
        state.mkdir()
        (state / "optimizer.bin").write_bytes(b"moments")
        words = [str(PYTHON), "-c", UPLOAD, str(run_dir.path / "config.toml"), str(weights), str(state)]
        environ = os.environ | {"PYTHONPATH": f"{CHECKOUT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
        done = subprocess.run(words, cwd=CHECKOUT, env=environ, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "failed to upload" not in done.stderr
    assert hub.repos == {"me/fox": "private"}
    assert hub.files == {
        "0.safetensors": b"weights",
        "0-state/optimizer.bin": b"moments",
        "loras/1.safetensors": b"weights",
        "loras/1-state/optimizer.bin": b"moments",
    }
