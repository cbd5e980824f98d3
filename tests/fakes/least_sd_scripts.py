"""The least that a checkout of sd-scripts is, for what needs no training; and a configuration for it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flowloom.trainers.checkouts import add_checkout
from flowloom.trainers.kohya.config import KohyaConfig
from flowloom.trainers.kohya.families import FACTS
from flowloom.trainers.kohya.files import arguments_of

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

def rates(accelerator):
    text, unet = accelerator._schedulers[0].get_last_lr()
    return {"lr/textencoder": text, "lr/unet": unet}

if __name__ == "__main__":
    args, _ = setup_parser().parse_known_args()
    stated = tomllib.loads(Path(args.config_file).read_text())["arguments"]
    given = {name: value for name, value in vars(args).items() if value is not None}
    args = argparse.Namespace(**stated | given)
    accelerator = accelerate.Accelerator()
    train_util.resume(accelerator, args)
    tracker = TensorBoardTracker()
    place = Path(args.output_dir) / args.output_name
    train_util.draw(accelerator, args, 0, 0)
    for step in range(1, args.max_train_steps + 1):
        train_util.draw(accelerator, args, None, step)
        if step % args.save_every_n_steps == 0:
            Path(f"{place}-step{step:08d}.safetensors").write_bytes(b"whole")
            accelerator.save_state(f"{place}-step{step:08d}-state")
        accelerator._schedulers[0].step()
        tracker.log({"loss/current": 1.0 / step, "loss/average": 1.0, **rates(accelerator)}, step=step)
        if step % 100 == 0:
            train_util.draw(accelerator, args, step // 100, step)
        time.sleep(0.01)
    Path(f"{place}.safetensors").write_bytes(b"")
"""
LIBRARY = """
from pathlib import Path

def sample_images(accelerator, args, epoch, steps):
    if steps and args.sample_every_n_steps and steps % args.sample_every_n_steps == 0:
        folder = Path(args.output_dir) / "sample"
        folder.mkdir(exist_ok=True)
        (folder / f"last_{steps:06d}_00_20261123102648_42.png").write_bytes(b"")

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

class Scheduler:
    done = 0

    def step(self):
        self.done += 1

    def get_last_lr(self):
        return [0.001 * self.done, 0.01 * self.done + 0.005]

class Accelerator:
    device = "cpu"

    def __init__(self):
        self._models = [Network()]
        self._schedulers = [Scheduler()]
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
def least_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
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
    add_checkout("kohya", folder, Path(sys.executable))
    return folder


def let_it_take_everything(checkout: Path, script: str) -> None:
    """Give a checkout a script with an argparse that knows every key of the studio, and nothing else."""
    keys = {key for _, section in KohyaConfig() for key in getattr(type(section), "model_fields", ())}
    keys |= arguments_of(KohyaConfig(), checkout).keys() | FACTS["chroma"].values.keys()
    keys |= {"max_token_length", "network_module", "sdpa"}
    lines = (f'    parser.add_argument("--{key}")' for key in sorted(keys))
    (checkout / script).write_text("\n".join(["def setup_parser():", *lines, ""]))


@pytest.fixture
def kohya_config(tmp_path: Path) -> Callable[..., dict[str, Any]]:
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
