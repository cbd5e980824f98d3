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
from library import train_util
from library.words import add_words

def setup_parser():
    parser = argparse.ArgumentParser()
    add_training_arguments(parser)
    add_words(parser)
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
    given = {name: value for name, value in vars(args).items() if value is not None}
    args = argparse.Namespace(**told | given)
    accelerator = accelerate.Accelerator()
    train_util.resume(accelerator, args)
    tracker = TensorBoardTracker()
    place = Path(args.output_dir) / args.output_name
    for step in range(1, args.max_train_steps + 1):
        train_util.draw(accelerator, args, None, step)
        if step % args.save_every_n_steps == 0:
            Path(f"{place}-step{step:08d}.safetensors").write_bytes(b"whole")
            accelerator.save_state(f"{place}-step{step:08d}-state")
        tracker.log({"loss/current": 1.0 / step, "loss/average": 1.0, "lr/unet": 0.5}, step=step)
        time.sleep(0.01)
    Path(f"{place}.safetensors").write_bytes(b"")
"""
LIBRARY = """
from pathlib import Path

def sample_images(accelerator, args, epoch, steps):
    if args.sample_every_n_steps and steps % args.sample_every_n_steps == 0:
        folder = Path(args.output_dir) / "sample"
        folder.mkdir(exist_ok=True)
        (folder / f"{steps}.png").write_bytes(b"")

def resume_from_local_or_hf_if_specified(accelerator, args):
    pass

def draw(*args):
    sample_images(*args)

def resume(*args):
    resume_from_local_or_hf_if_specified(*args)
"""
OTHER_LIBRARY = """
def draw(*args):
    pass

def resume(*args):
    pass
"""
WORDS = """
def add_words(parser):
    parser.add_argument("--console_log_simple", action="store_true")
"""
ACCELERATE = """
from pathlib import Path

class Network:
    def save_weights(self, file, dtype, metadata):
        Path(file).write_bytes(b"weights")

class Accelerator:
    device = "cpu"

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
    (folder / "library").mkdir()
    (folder / "library" / "train_util.py").write_text(LIBRARY)
    (folder / "library" / "words.py").write_text(WORDS)
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
    assert "console_log_simple" in known, "of a function that is imported by its name"
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
        (
            BAR,
            {
                "kind": "progress",
                "batch": 240,
                "batches": 2000,
                "batches_per_s": pytest.approx(1 / 1.04),
            },
        ),
        ("saving checkpoint: /runs/a/last.safetensors", None),
        ("caching latents...", {"kind": "phase", "name": "caching"}),
        (f'{MARK}{{"kind": "step", "step": 3, "loss": 0.5}}', {"kind": "step", "step": 3, "loss": 0.5}),
        (
            "steps:   0%|          | 0/10 [00:00<?, ?it/s]",
            {"kind": "progress", "batch": 0, "batches": 10, "batches_per_s": None},
        ),
        (f"{MARK}{{", None),
        ("epoch 3/10", None),
    ],
)
def test_lines_mean_events(line: str, expected: dict[str, Any] | None) -> None:
    assert TRAINER.parse(line) == expected


def followed(run_dir: RunDir, resume: bool, when: dict[int, str]) -> list[dict[str, Any]]:
    """The events of one sitting, in which `when` says what is asked for at which step."""
    command = TRAINER.command(run_dir, resume=resume)
    words = {"PATH": "/usr/bin", **command.env}
    events = []
    with subprocess.Popen(
        command.argv, cwd=command.cwd, env=words, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        for line in process.stdout:
            if event := TRAINER.parse(line.strip()):
                events.append(event)
                if event["kind"] == "step" and event["step"] in when:
                    run_dir.request(when[event["step"]])  # pyright: ignore[reportArgumentType]
        assert process.wait(20) == 0
    return events


@pytest.fixture
def run_dir(make_config: Callable[..., dict[str, Any]], checkout: Path, tmp_path: Path) -> RunDir:
    """Of 300 steps, prepared."""
    run_dir = RunDir.create("run", tmp_path / "runs")
    config = make_config(
        family="sd15",
        training={"max_train_steps": 300},
        saving={"save_every_n_steps": 1000},
        sampling={"prompts": ["a fox"], "sample_every_n_steps": 1000},
    )
    TRAINER.prepare(config, run_dir, "a test")
    return run_dir


def of_kind(events: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [event for event in events if event["kind"] == kind]


def test_the_hooks_tell_steps_and_obey_and_a_resume_counts_on(run_dir: RunDir) -> None:
    run_dir.request("checkpoint")
    events = followed(run_dir, False, {10: "sample", 20: "stop"})
    checkpoints = run_dir.path / "checkpoints"
    assert (checkpoints / "last-step00000001.safetensors").read_bytes() == b"whole", "by the script itself"
    (sampled,) = of_kind(events, "sampled")
    assert sampled["step"] > 10
    assert Path(sampled["dir"]).exists()
    done = of_kind(events, "stopped")[0]["step"]
    assert 20 <= done < 300
    assert [event["step"] for event in of_kind(events, "saved")] == [1, done]
    assert len(list(checkpoints.glob("*-state"))) == 2
    assert f"--resume {checkpoints}/last-step{done:08d}-state" in shlex.join(
        TRAINER.command(run_dir, True).argv
    )

    again = followed(run_dir, True, {})
    assert [event["step"] for event in of_kind(again, "step")] == list(range(done + 1, 301))
    assert of_kind(again, "started")[0]["resumed_from"] == done
    assert (checkpoints / f"last-from{done:08d}.safetensors").exists()
    assert not of_kind(events + again, "warning")
    assert json.loads(run_dir.run_json.read_text())["trainer"] == "kohya"


def test_of_another_version_it_hears_what_it_can_and_says_what_is_missing(
    run_dir: RunDir, checkout: Path
) -> None:
    (checkout / "library" / "train_util.py").write_text(OTHER_LIBRARY)
    events = followed(run_dir, False, {3: "checkpoint", 20: "stop"})
    (warning,) = of_kind(events, "warning")
    assert "pictures" in warning["message"]
    first, last = of_kind(events, "saved")
    assert 3 <= first["step"] < last["step"] < 300
    assert Path(last["dir"]).read_bytes() == b"weights", "by the hooks"
    assert "again" in of_kind(followed(run_dir, True, {}), "warning")[0]["message"]


def test_where_nothing_can_be_listened_to_the_run_goes_on(run_dir: RunDir, checkout: Path) -> None:
    other = (checkout / "accelerate" / "tracking.py").read_text().replace("def log(", "def write(")
    (checkout / "accelerate" / "tracking.py").write_text(
        other + "    def __getattr__(self, name):\n        return lambda *_, **__: None\n"
    )
    events = followed(run_dir, False, {})
    (warning,) = of_kind(events, "warning")
    assert "log alone" in warning["message"]
    assert (run_dir.path / "checkpoints" / "last.safetensors").exists()


def test_a_state_that_was_cut_short_is_not_resumed(run_dir: RunDir) -> None:
    checkpoints = run_dir.path / "checkpoints"
    for name in (
        "last-step00000010-state",
        "last-step00000020-state",
        "last-from00000010-step00000005-state",
    ):
        (checkpoints / name).mkdir()
    for name in ("last-step00000010-state", "last-from00000010-step00000005-state"):
        (checkpoints / name / "random_states_0.pkl").touch()
    assert "last-from00000010-step00000005-state" in shlex.join(TRAINER.command(run_dir, True).argv)
    (checkpoints / "last-state").mkdir()
    (checkpoints / "last-state" / "flowloom.json").write_text('{"step": 30}')
    assert f"--resume {checkpoints}/last-state" in shlex.join(TRAINER.command(run_dir, True).argv)
    (checkpoints / "last-state" / "flowloom.json").write_text('{"st')
    assert "last-from00000010-step00000005-state" in shlex.join(TRAINER.command(run_dir, True).argv)


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
