"""The command line from end to end, on the tiny family."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flowloom.cli.main import main
from flowloom.models.weights import open_weights
from flowloom.run.directory import RunDir
from flowloom.run.events import read_events, without_repeats

TOKEN = "hf_topsecret_of_a_flow_file"


@pytest.fixture
def config_file(tmp_path: Path, make_config, monkeypatch):
    """A LoRA of two steps, as a FLOW user writes it, with a token inside."""
    monkeypatch.setenv("FLOWLOOM_SECRETS", str(tmp_path / "none"))
    monkeypatch.setenv("HF_TOKEN", "")
    data = make_config(lora={"rank": 2, "alpha": 4}, limits={"max_steps": 2}).model_dump(mode="json")
    data["training"] |= {"hf_token": TOKEN, "save_folder": "x", "aim_path": None}
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(data))
    return path


@pytest.fixture
def trained(config_file: Path, tmp_path: Path, capsys) -> RunDir:
    """The run that `flowloom train` makes of it; `capsys` has what was said."""
    arguments = ["train", str(config_file), "--name", "one", "--runs-dir", str(tmp_path / "runs")]
    assert main([*arguments, "--training.lr", "2e-3"]) == 0
    return RunDir(tmp_path / "runs" / "one")


def test_train_makes_a_run_and_trains_it(trained, capsys):
    assert trained.read_config().training.lr == 2e-3
    kinds = [event["kind"] for event in read_events(trained.events_jsonl)]
    assert kinds[-1] == "finished"
    assert kinds.count("step") == 2
    assert trained.latest_checkpoint() == trained.checkpoint_dir(2)
    written = [path for path in trained.path.rglob("*") if path.is_file()]
    assert not [path for path in written if TOKEN.encode() in path.read_bytes()]
    error = capsys.readouterr().err
    assert "note       training.save_folder: " in error
    assert TOKEN not in error


def test_resume_continues_and_trains_longer_on_request(trained):
    assert main(["resume", str(trained.path), "--limits.max_steps", "3"]) == 0
    events = without_repeats(read_events(trained.events_jsonl))
    assert [event["step"] for event in events if event["kind"] == "step"] == [1, 2, 3]
    assert trained.latest_checkpoint() == trained.checkpoint_dir(3)


def test_a_second_run_of_the_same_name_is_refused(trained, config_file, capsys):
    arguments = ["train", str(config_file), "--name", "one", "--runs-dir", str(trained.path.parent)]
    assert main(arguments) == 2
    assert "flowloom resume" in capsys.readouterr().err


def test_sample_generates_the_requested_images(trained, tmp_path, capsys):
    out = tmp_path / "pictures"
    command = ["sample", str(trained.path), "--prompt", "red bar", "--prompt", "blue bar", "--size", "32x48"]
    assert main([*command, "--steps", "2", "--cfg", "2", "--seed", "5", "-o", str(out)]) == 0
    assert capsys.readouterr().out.split() == [str(out / "00.png"), str(out / "01.png")]
    records = json.loads((out / "samples.json").read_text())
    assert [(record["prompt"], record["seed"], record["width"]) for record in records] == [
        ("red bar", 5, 32),
        ("blue bar", 6, 32),
    ]


@pytest.mark.parametrize("form", ["comfy", "kohya", "diffusers"])
def test_sample_takes_an_exported_adapter_and_a_config(trained, config_file, tmp_path, form, capsys):
    adapter = tmp_path / "fox.safetensors"
    assert main(["export", str(trained.path), "--format", form, "-o", str(adapter)]) == 0
    options = ["--prompt", "red bar", "--size", "32x32", "--steps", "2", "--cfg", "2"]
    assert main(["sample", str(trained.path), *options, "-o", str(tmp_path / "run")]) == 0
    assert main(["sample", str(adapter), *options, "-o", str(tmp_path / "none")]) == 2
    assert "--config" in capsys.readouterr().err
    arguments = ["sample", str(adapter), "--config", str(config_file), *options, "-o", str(tmp_path / "file")]
    assert main(arguments) == 0
    images = [np.asarray(Image.open(tmp_path / name / "00.png")).astype(int) for name in ("run", "file")]
    # Adapters are kept in float32; diffusers' layers are cut and joined again.
    assert abs(images[0] - images[1]).max() <= 1


@pytest.mark.parametrize(
    ("form", "prefix"),
    [("comfy", "diffusion_model."), ("kohya", "lora_unet_"), ("diffusers", "transformer.")],
)
def test_export_writes_the_names_of_each_program(trained, tmp_path, form, prefix):
    out = tmp_path / f"{form}.safetensors"
    assert main(["export", str(trained.path), "--format", form, "-o", str(out)]) == 0
    weights = open_weights(out)
    assert all(name.startswith(prefix) for name in weights)
    assert json.loads(weights.metadata["flowloom.config"])["lora"]["alpha"] == 4


def test_export_merges_into_the_runs_own_base(trained, tmp_path):
    out = tmp_path / "merged.safetensors"
    assert main(["export", str(trained.path), "--format", "merged", "-o", str(out)]) == 0
    base = open_weights(Path(trained.read_config().model.chroma_path))
    assert open_weights(out).shapes == base.shapes
    name = "double_blocks.0.img_attn.qkv.weight"
    assert not (open_weights(out)[name] == base[name]).all()


def test_export_of_nothing_is_one_clear_line(tmp_path, capsys):
    assert main(["export", str(tmp_path), "--format", "comfy", "-o", str(tmp_path / "x.safetensors")]) == 2
    assert "is not a run directory" in capsys.readouterr().err
