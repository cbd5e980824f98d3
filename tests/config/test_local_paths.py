"""Where a path on this machine is needed, an address is refused before it becomes a folder called `s3:`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flowloom.cli.main import main
from flowloom.config.flow_format.read import load_config
from flowloom.config.local_paths import local_path_error
from flowloom.errors import ConfigError, RunError
from flowloom.run.directory import RunDir
from flowloom.trainers.flow_upstream.trainer import TRAINER as UPSTREAM
from flowloom.trainers.kohya.trainer import TRAINER as KOHYA

BUCKET = "s3://bucket/folder"


@pytest.mark.parametrize(
    "text", [BUCKET, "s3:/bucket", "https://host/x.safetensors", "gs://b", "az://b/c", "hf://a/b"]
)
def test_an_address_is_distinguished_from_a_path(text: str) -> None:
    assert "is a URL" in local_path_error(text)


@pytest.mark.parametrize(
    "text", ["", "runs", "/a/b", "./x", "~/x", "C:/models", "C:\\models", "a:b", "x=s3://y"]
)
def test_a_path_is_no_address(text: str) -> None:
    assert local_path_error(text) == ""


def test_no_token_in_an_address_is_printed() -> None:
    error = local_path_error("https://user:hunter2secret@host/x?X-Amz-Signature=abcdef0123456789")
    assert "hunter2secret" not in error
    assert "abcdef0123456789" not in error


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "config.json", "--runs-dir", BUCKET],
        ["train", BUCKET],
        ["resume", "https://host/folder"],
        ["sample", "x.safetensors", "--prompt", "x", "--config", BUCKET],
        ["sample", "x.safetensors", "--prompt", "x", "--lora", BUCKET],
        ["sample", "x.safetensors", "--prompt", "x", "--lora", f"{BUCKET}:0.5"],
        ["sample", "x.safetensors", "--prompt", "x", "-o", BUCKET],
        ["export", "x", "--format", "comfy", "-o", f"{BUCKET}/x.safetensors"],
        ["export", "x", "--format", "merged", "-o", "x.safetensors", "--base", BUCKET],
        ["demo", "--runs-dir", BUCKET],
        ["up", "--home", BUCKET],
        ["up", "--root", f"more={BUCKET}"],
        ["preflight", "config.json", "--runs-dir", BUCKET],
        ["preflight", BUCKET],
        ["cache", "stats", BUCKET],
        ["schema", "--check", BUCKET],
        ["dataset", "lint", "x.jsonl", "--html", f"{BUCKET}/page.html"],
        ["dataset", "fix", "x.jsonl", "-o", f"{BUCKET}/new.jsonl"],
        ["dataset", "build", ".", "-o", f"{BUCKET}/new.jsonl"],
        ["dataset", "export", "x.jsonl", "--to", "parquet", "-o", BUCKET],
        ["tag", ".", "--runs-dir", BUCKET],
        ["tag", "--resume", BUCKET],
        ["tag", "--undo", BUCKET],
        ["caption", ".", "--models-dir", BUCKET],
        ["trainers", "install", "kohya", "--path", BUCKET],
    ],
    ids=" ".join,
)
def test_no_verb_takes_an_address_for_a_path(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("config.json").write_text("{}")
    try:
        status = main(arguments)
    except SystemExit as end:
        status = end.code
    assert status == 2
    assert "is a URL, and this must be a path on this machine" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.parametrize("runs_dir", [BUCKET, Path(BUCKET)])
def test_no_run_directory_is_made_in_a_folder_named_like_a_store(
    runs_dir: str | Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunError, match="is a URL"):
        RunDir.create("run", runs_dir)
    with pytest.raises(RunError, match="is a URL"):
        RunDir.open(runs_dir)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "path",
    [
        "model.chroma_path",
        "model.vae_path",
        "model.t5_path",
        "model.t5_config_path",
        "model.t5_tokenizer_path",
        "dataloader.jsonl_metadata_path",
        "datasets.0.jsonl_metadata_path",
        "datasets.0.mask_folder_path",
    ],
)
def test_a_configuration_names_its_addresses_as_problems(path: str, tmp_path: Path) -> None:
    section, _, key = path.rpartition(".")
    # Models may be in a bucket, but not everywhere.
    data = {section: {key: "hf://owner/model" if section == "model" else BUCKET}}
    if section == "datasets.0":
        data = {
            "datasets": [
                {"jsonl_metadata_path": "x.jsonl", "mask": "folder", "mask_folder_path": "m", key: BUCKET}
            ]
        }
    with pytest.raises(ConfigError) as error:
        load_config(data, [], tmp_path / "config.json", with_files=True)
    problems = {problem.where: problem.text for problem in error.value.problems}
    assert "is a URL" in problems[path]


def test_images_and_the_cache_may_be_in_a_store(tmp_path: Path) -> None:
    data = {"dataloader": {"image_folder_path": BUCKET}, "cache": {"dir": BUCKET, "latents": "disk"}}
    with pytest.raises(ConfigError) as error:
        load_config(data, [], tmp_path / "config.json", with_files=True)
    paths = {problem.where for problem in error.value.problems}
    assert "model.chroma_path" in paths
    assert not paths & {"dataloader.image_folder_path", "cache.dir"}


def test_the_trainers_of_others_take_no_addresses_for_paths() -> None:
    config = {
        "model": {"chroma_path": BUCKET},
        "training": {"save_folder": BUCKET},
        "inference": {"inference_folder": BUCKET},
    }
    paths = {problem.where for problem in UPSTREAM.check(config) if "is a URL" in problem.text}
    assert paths >= {"model.chroma_path", "training.save_folder", "inference.inference_folder"}
    kohya = json.loads(json.dumps(KOHYA.defaults()))
    kohya["datasets"] = [{"subsets": [{"image_dir": "https://host/images"}]}]
    paths = {problem.where for problem in KOHYA.check(kohya) if "is a URL" in problem.text}
    assert "datasets.0.subsets.0.image_dir" in paths
