"""A folder that looks like a checkout of lodestone-rock/flow, whose trainer trains nothing.

It reads its configuration where and as FLOW does, writes what FLOW writes, and says what FLOW says, by the
same progress bars. `master_seed` says for how many epochs (0: forever; below 0: it fails).
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from flowloom.trainers.checkouts import add_checkout

_OLD = """
from src.trainer.train_old import train_chroma

if __name__ == "__main__":
    train_chroma(0, 1)
"""
_NEW = """
from src.trainer.train_chroma import train_chroma

if __name__ == "__main__":
    train_chroma(0, 1)
"""
_CONFIGS = """
import json
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from PIL import Image
from tqdm import tqdm


@dataclass
class TrainingConfig:
    master_seed: int
    lr: float
    save_every: int
    save_folder: str
    MORE_TRAINING
    aim_path: Optional[str] = None
    aim_steps: Optional[int] = 0


@dataclass
class InferenceConfig:
    inference_every: int
    inference_folder: str
    prompts: list[str]


@dataclass
class DataloaderConfig:
    batch_size: int
    jsonl_metadata_path: str
    offset: int


@dataclass
class ModelConfig:
    chroma_path: str


def dump(data, path):
    Path(path).write_text(json.dumps(data))


def run(data):
    training = TrainingConfig(**data["training"])
    inference = InferenceConfig(**data["inference"])
    dataloader = DataloaderConfig(**data["dataloader"])
    model = ModelConfig(**data["model"])
    assert data["extra_inference_config"] == []
    if not Path(model.chroma_path).exists():
        raise FileNotFoundError(f"no weights at {model.chroma_path}")
    print("chroma loaded")
    for _ in tqdm(range(3), desc="preparing captions and buckets"):
        pass
    if training.master_seed < 0:
        raise ValueError("the master seed is below 0")
    Path(training.save_folder).mkdir(parents=True, exist_ok=True)
    Path(inference.inference_folder).mkdir(parents=True, exist_ok=True)
    dump(data, f"{training.save_folder}/training_config.json")
    print("There are 24 text image pairs.")
    print("We got 6 batches from these pairs.")
    epoch = 0
    while not training.master_seed or epoch < training.master_seed:
        for counter, _ in tqdm(enumerate(range(6)), total=6, desc="training, Rank 0", position=0):
            for _ in tqdm(range(2), desc="minibatch training, Rank 0", position=0):
                time.sleep(0.03)
            print("param updated")
            if (counter + 1) % training.save_every == 0:
                save(data, training, f"{epoch}-{counter}")
            if (counter + 1) % inference.inference_every == 0:
                draw(inference, counter)
        epoch += 1


def save(data, training, name):
    path = f"{training.save_folder}/2026-01-01_00-00-{name}.pth"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", "weights " * 100)
    data["model"]["chroma_path"] = path
    dump(data, f"{training.save_folder}/training_config.json")


def draw(inference, counter):
    folder = Path(inference.inference_folder) / f"step_{counter}_temp"
    folder.mkdir()
    Image.new("RGB", (32, 32), "red").save(folder / "config0_prompt0_rank0.jpg")
    path = f"{inference.inference_folder}/{counter}.jpg"
    Image.new("RGB", (64, 32), "red").save(path)
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    print(f"Combined image grid saved to {path}")
"""
_MAIN = """

def train_chroma(rank, world_size, wrap_models, wrap_config, debug=False):
    run(wrap_config)


def main(config="training_config.json"):
    train_chroma(0, 1, (), json.loads(Path(config).read_text()))
"""
_BY_NAME = """

def train_chroma(rank, world_size, debug=False):
    run(json.loads(Path("training_config_old.json").read_text()))
"""


def make_checkout(path: Path) -> Path:
    """Write it to `path`: a new trainer that only its `main` starts, an old one with a separate script."""
    modules = path / "src" / "trainer"
    modules.mkdir(parents=True)
    for folder in (path / "src", modules):
        (folder / "__init__.py").touch()
    (path / "train_mp.py").write_text(_NEW)
    (path / "train_mp_old.py").write_text(_OLD)
    new = "trained_layer_keywords: list[str]\n    change_layer_every: int"
    (modules / "train_chroma.py").write_text(_CONFIGS.replace("MORE_TRAINING", new) + _MAIN)
    old = "change_layer_every: int\n    trained_single_blocks: int"
    (modules / "train_old.py").write_text(_CONFIGS.replace("MORE_TRAINING", old) + _BY_NAME)
    return path


@pytest.fixture
def flow_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout that the owner of this machine has named."""
    monkeypatch.setenv("FLOWLOOM_TRAINERS", str(tmp_path / "trainers.json"))
    path = make_checkout(tmp_path / "flow")
    add_checkout("flow-upstream", path, Path(sys.executable))
    return path
