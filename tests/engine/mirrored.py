"""A run in a bucket, and processes that are killed while they mirror it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from flowloom.config.run import RunConfig
from flowloom.engine.__main__ import run_engine
from flowloom.models.weights import open_weights
from flowloom.run.directory import RunDir
from flowloom.run.events import read_events
from flowloom.run.mirror import lease as leases
from flowloom.run.mirror.download import restore
from flowloom.run.mirror.layout import mirrored_steps
from flowloom.storage.base import StorageSection
from flowloom.storage.objects import Objects
from flowloom.storage.open import open_source
from tests.engine.processes import ForkedProcess

STEPS = 8
SECTIONS: dict[str, Any] = {
    "training": {"save_every": 2},
    "limits": {"max_steps": STEPS},
    "ema": {"decay": 0.9},
    "lora": {"rank": 2, "alpha": 4},
}


class Bucket:
    """A folder of the store for one test, with a run in it."""

    def __init__(self, url: str, storage: StorageSection):
        self.url, self.storage = url, storage
        self.run_url = f"{url}/run"
        store = open_source(self.run_url, storage)
        assert isinstance(store, Objects)
        self.store = store

    def sections(self, **others: Any) -> dict[str, Any]:
        """Sections of a run that is mirrored here."""
        mirror = {"mirror": {"url": self.url}, "storage": self.storage.model_dump()}
        return SECTIONS | mirror | others

    def steps(self) -> list[int]:
        """The complete checkpoints."""
        return mirrored_steps([info.name for info in self.store.list()])

    def wait_for(self, step: int) -> None:
        """Return when a checkpoint is complete here."""
        deadline = time.monotonic() + 60
        while step not in self.steps():
            assert time.monotonic() < deadline, f"only {self.steps()} were mirrored"
            time.sleep(0.05)

    def restore(self, folder: Path, *flags: tuple[str, str], name: str | None = None) -> RunDir:
        """The run in a new run directory of another machine."""
        endpoint = ("storage.endpoint", self.storage.endpoint or "")
        return restore(self.run_url, folder, name, [endpoint, *flags], self.said.append)[0]

    @property
    def said(self) -> list[str]:
        return self.__dict__.setdefault("_said", [])


@pytest.fixture
def bucket(tmp_path: Path, storage: StorageSection) -> Bucket:
    return Bucket(f"s3://loom/{tmp_path.name}/runs", storage)


@pytest.fixture(scope="module")
def unmirrored(make_config: Callable[..., RunConfig], tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """The same run without a mirror, never interrupted."""
    run_dir = RunDir.create("whole", tmp_path_factory.mktemp("unmirrored"))
    run_dir.write_run(make_config(**SECTIONS), "a test")
    run_engine(run_dir)
    return run_dir


@pytest.fixture
def short_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases that end after two seconds."""
    monkeypatch.setattr(leases, "LEASE_S", 2.0)


def losses(run_dir: RunDir) -> dict[int, float]:
    """The loss of each step; a step made twice must have given the same one both times."""
    found: dict[int, float] = {}
    for event in events(run_dir, "step"):
        assert found.setdefault(event["step"], event["loss"]) == event["loss"]
    return found


def assert_same_run(one: RunDir, other: RunDir) -> None:
    """Equal losses and a last checkpoint with equal weights, averages and state, bit for bit."""
    assert losses(one) == losses(other)
    assert sorted(losses(one)) == list(range(1, STEPS + 1))
    folders = one.checkpoint_dir(STEPS), other.checkpoint_dir(STEPS)
    files = [sorted(path.relative_to(folder) for path in folder.rglob("*.*")) for folder in folders]
    assert files[0] == files[1]
    for name in (name for name in files[0] if name.suffix == ".safetensors"):
        weights = [dict(open_weights(folder / name).items()) for folder in folders]
        assert weights[0].keys() == weights[1].keys()
        assert all(torch.equal(tensor, weights[1][key]) for key, tensor in weights[0].items())


def events(run_dir: RunDir, kind: str) -> list[dict[str, Any]]:
    return [event for event in read_events(run_dir.events_jsonl) if event["kind"] == kind]


def _engine_that_waits(run_dir: str, step: int) -> int:
    """The engine, which trains up to `step` and then waits."""
    from flowloom.engine.trainer import Trainer

    make_step = Trainer.step

    def wait_or_step(self: Trainer, batch: Any) -> Any:
        if self.state.position.step >= step:
            with self.controls.interruptible():
                time.sleep(100)
        return make_step(self, batch)

    Trainer.step = wait_or_step
    run_engine(RunDir(run_dir))
    return 0


def train_until(run_dir: RunDir, step: int) -> ForkedProcess:
    """A process that waits after `step`."""
    return ForkedProcess(_engine_that_waits, str(run_dir.path), step)
