"""What sd-scripts is given: right values for each family, and nothing that it would take in silence."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flowloom.cli import main
from flowloom.spec.rundir import RunDir
from flowloom.trainers.checkouts import name_checkout
from flowloom.trainers.kohya.arguments import known_arguments, raw_problems
from flowloom.trainers.kohya.files import toml
from flowloom.trainers.kohya.hooks import MARK
from flowloom.trainers.kohya.trainer import TRAINER

SCRIPT = """
import argparse, tomllib, sys, time
from pathlib import Path
import accelerate
from accelerate.tracking import TensorBoardTracker

def setup_parser():
    parser = argparse.ArgumentParser()
    add_training_arguments(parser)
    parser.add_argument("--config_file")
    parser.add_argument("--lowram", action="store_true")
    return parser

def add_training_arguments(parser):
    parser.add_argument("--max_train_steps", type=int)
    parser.add_argument("--resume")
    parser.add_argument("--output_dir")
    parser.add_argument("--output_name")
    parser.add_argument("--blocks_to_swap", type=int)

if __name__ == "__main__":
    args, _ = setup_parser().parse_known_args()
    told = tomllib.loads(Path(args.config_file).read_text())["arguments"]
    accelerator = accelerate.Accelerator()
    tracker = TensorBoardTracker()
    steps = args.max_train_steps or told["max_train_steps"]
    for step in range(1, steps + 1):
        tracker.log({"loss/current": 1.0 / step, "loss/average": 1.0, "lr/unet": 0.5}, step=step)
        time.sleep(0.01)
    (Path(args.output_dir) / f"{args.output_name}.safetensors").write_bytes(b"")
"""
ACCELERATE = """
from pathlib import Path

class Network:
    def save_weights(self, file, dtype, metadata):
        Path(file).write_bytes(b"weights")

class Accelerator:
    def __init__(self):
        self._models = [Network()]
    def unwrap_model(self, model):
        return model
    def save_state(self, folder):
        Path(folder).mkdir()
        (Path(folder) / "random_states_0.pkl").write_bytes(b"")
"""
TRACKING = """
class TensorBoardTracker:
    def log(self, values, step=None, **kwargs):
        pass
"""


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The least that a script of sd-scripts is: an argparse, an accelerator, a tracker."""
    folder = tmp_path / "sd-scripts"
    (folder / "accelerate").mkdir(parents=True)
    (folder / "accelerate" / "__init__.py").write_text(ACCELERATE)
    (folder / "accelerate" / "tracking.py").write_text(TRACKING)
    (folder / "train_network.py").write_text(SCRIPT)
    monkeypatch.setenv("FLOWLOOM_TRAINERS", str(tmp_path / "trainers.json"))
    name_checkout("kohya", folder, Path(sys.executable))
    return folder


@pytest.fixture
def make_config(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    def make(**sections: Any) -> dict[str, Any]:
        (tmp_path / "pictures").mkdir(exist_ok=True)
        files = {}
        for name in ("base", "ae", "t5", "clip"):
            (tmp_path / f"{name}.safetensors").touch()
            files[name] = str(tmp_path / f"{name}.safetensors")
        model = {"pretrained_model_name_or_path": files["base"], "ae": files["ae"], "t5xxl": files["t5"]}
        subsets = [{"image_dir": str(tmp_path / "pictures"), "class_tokens": 'a "fox"\\ é'}]
        return {"model": model, "datasets": [{"subsets": subsets, "resolution": 512}], **sections}

    return make


def rendered(config: dict[str, Any], folder: Path) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    run_dir = RunDir.create("run", folder)
    TRAINER.prepare(config, run_dir, "a test")
    config_toml = tomllib.loads((run_dir.path / "config.toml").read_text())["arguments"]
    dataset_toml = tomllib.loads((run_dir.path / "dataset.toml").read_text())
    return config_toml, dataset_toml, (run_dir.path / "prompts.txt").read_text().splitlines()


def test_chroma_gets_what_it_needs(make_config: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    sampling = {"prompts": ["a fox\n--s 100"], "negative": "blurry"}
    config, dataset, prompts = rendered(make_config(sampling=sampling), tmp_path / "runs")
    right = {
        "model_type": "chroma",
        "apply_t5_attn_mask": True,
        "guidance_scale": 0.0,
        "model_prediction_type": "raw",
        "network_module": "networks.lora_flux",
        "network_train_unet_only": True,
        "sdpa": True,
        "save_state": True,
        "log_with": "tensorboard",
    }
    assert right.items() <= config.items()
    assert not {"attention", "clip_l", "min_snr_gamma"} & config.keys()
    (line,) = prompts
    words = line.split()
    assert line.startswith("a fox - -s 100 --n blurry")
    assert (words[words.index("--g") + 1], words[words.index("--l") + 1]) == ("0", "4")
    (subset,) = dataset["datasets"][0]["subsets"]
    assert subset["caption_extension"] == ".txt", "sd-scripts' own default is .caption"
    assert subset["class_tokens"] == 'a "fox"\\ é'


def test_keys_of_flow_matching_stay_out_of_sdxl(
    make_config: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    given = make_config(family="sdxl", flow={"guidance_scale": 3.0})
    config, _, _ = rendered(given, tmp_path / "runs")
    assert not {"guidance_scale", "timestep_sampling", "apply_t5_attn_mask", "model_type"} & config.keys()
    assert config["no_half_vae"]


@pytest.mark.parametrize("value", ['a"b\\c\n\t\x7f\x01é😀', 1e-4, 0, True, ["a", "b=c"], [], -1.5])
def test_values_come_back_from_toml(value: Any) -> None:
    assert tomllib.loads(f"x = {toml(value)}")["x"] == value


def test_all_that_is_wrong_is_told_at_once(
    make_config: Callable[..., dict[str, Any]], checkout: Path
) -> None:
    config = make_config(
        method="full",
        memory={"cache_text_encoder_outputs": True},
        network={"network_module": "os.path"},
        raw_arguments="--no_such_thing 1 --output_dir x stray",
    )
    config["model"]["t5xxl"] = "/no/such/file"
    config["datasets"][0]["bucket_reso_steps"] = 48
    config["datasets"][0]["subsets"][0] |= {"shuffle_caption": True, "image_dir": "/no/such/folder"}
    places = {problem.path for problem in TRAINER.check(config)}
    assert {
        "method",
        "model.t5xxl",
        "datasets.0.bucket_reso_steps",
        "datasets.0.subsets.0",
        "datasets.0.subsets.0.image_dir",
        "network.network_module",
        "raw_arguments",
    } <= places


def test_the_scripts_own_arguments_are_known(checkout: Path) -> None:
    known = known_arguments(checkout, "train_network.py")
    assert known["blocks_to_swap"]
    assert not known["lowram"]
    assert not list(raw_problems("--lowram --blocks_to_swap 3", known))
    assert not list(raw_problems("--blocks_to_swap=3", known))
    told = [problem.message for problem in raw_problems("--block_to_swap 3", known)]
    assert any("--blocks_to_swap" in message for message in told)
    for bad in ("--lowram 3", "--resume x", "'", "--blocks_to_swap /etc/passwd", "word"):
        assert list(raw_problems(bad, known)), bad


def test_a_checkout_that_lacks_an_argument_is_told(
    make_config: Callable[..., dict[str, Any]], checkout: Path
) -> None:
    problems = {problem.path: problem for problem in TRAINER.check(make_config(family="sd15"))}
    assert "takes no --save_state" in problems["saving.save_state"].message


def test_without_sd_scripts_it_says_how_to_get_it(
    make_config: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLOWLOOM_TRAINERS", str(tmp_path / "none.json"))
    (problem,) = TRAINER.check(make_config())
    assert "flowloom trainers install kohya" in problem.message


BAR = "steps:  12%|#2        | 240/2000 [04:10<30:34,  1.04s/it, avr_loss=0.412]"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (BAR, {"kind": "progress", "step": 240, "max_steps": 2000, "eta_s": pytest.approx(1830.4)}),
        ("saving checkpoint: /runs/a/last.safetensors", {"kind": "saved", "dir": "/runs/a/last.safetensors"}),
        (f'{MARK}{{"kind": "step", "step": 3, "loss": 0.5}}', {"kind": "step", "step": 3, "loss": 0.5}),
        (
            "steps:   0%|          | 0/10 [00:00<?, ?it/s]",
            {"kind": "progress", "step": 0, "max_steps": 10, "eta_s": None},
        ),
        (f"{MARK}{{", None),
        ("epoch 3/10", None),
    ],
)
def test_lines_mean_events(line: str, expected: dict[str, Any] | None) -> None:
    assert TRAINER.parse(line) == expected


def test_the_hooks_tell_steps_and_obey_and_a_resume_counts_on(
    make_config: Callable[..., dict[str, Any]], checkout: Path, tmp_path: Path
) -> None:
    run_dir = RunDir.create("run", tmp_path / "runs")
    config = make_config(family="sd15", training={"max_train_steps": 300})
    TRAINER.prepare(config, run_dir, "a test")
    first = TRAINER.command(run_dir, resume=False)
    run_dir.request("checkpoint")
    with subprocess.Popen(first.argv, cwd=first.cwd, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        for line in process.stdout:
            event = TRAINER.parse(line.strip())
            if event and event["kind"] == "step" and event["step"] == 20:
                run_dir.request("stop")
        assert process.wait(20) == 0
    checkpoints = run_dir.path / "checkpoints"
    assert (checkpoints / "last-step00000001.safetensors").exists()
    states = sorted(path.name for path in checkpoints.glob("*-state"))
    assert len(states) == 2
    done = int(states[-1].split("step")[1].split("-")[0])
    assert 20 <= done < 300

    again = TRAINER.command(run_dir, resume=True)
    words = shlex.join(again.argv)
    assert f"--resume {checkpoints / states[-1]}" in words
    assert f"--max_train_steps {300 - done}" in words
    environment = {"PATH": "/usr/bin", **again.env}
    told = subprocess.run(
        again.argv, cwd=again.cwd, env=environment, capture_output=True, text=True, check=True
    )
    events = [event for line in told.stdout.splitlines() if (event := TRAINER.parse(line))]
    steps = [event["step"] for event in events if event["kind"] == "step"]
    assert steps == list(range(done + 1, 301))
    assert (checkpoints / f"last-from{done:08d}.safetensors").exists()
    assert json.loads(run_dir.run_json.read_text())["trainer"] == "kohya"


def test_a_checkout_is_named_by_its_path(
    checkout: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLOWLOOM_TRAINERS", str(tmp_path / "others.json"))
    status = main(["trainers", "install", "kohya", "--path", str(checkout), "--python", sys.executable])
    told = capsys.readouterr()
    assert str(checkout) in told.out
    assert status == (2 if "lacks" in told.out else 0)
    main(["trainers"])
    assert str(checkout) in capsys.readouterr().out
    assert main(["trainers", "install", "kohya", "--path", str(tmp_path / "nowhere")]) == 2
    assert main(["trainers", "install", "flow-upstream"]) == 2
