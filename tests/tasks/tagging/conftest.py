"""Small folders of images, a tagger made on the spot, and runs that work in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from flowloom.run.directory import RunDir
from flowloom.run.events import EventWriter
from flowloom.tasks import ALL
from flowloom.tasks.base import FunctionTask, Progress
from tests.fakes.onnx_tagger import write_tagger

RED, GREEN, BLUE = "#ff0000", "#00ff00", "#0000ff"


class Runs:
    """Tasks that run in this process, in separate run directories."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.numbers = count(1)

    def new(self, task: str, **config: Any) -> RunDir:
        """A prepared run."""
        assert ALL[task].check(config) == []
        run_dir = RunDir.create(f"run{next(self.numbers)}", self.folder)
        ALL[task].prepare(config, run_dir, "a test")
        return run_dir

    def resume(self, run_dir: RunDir) -> dict[str, Any]:
        """Work a run off, from its beginning or from where it was; its result."""
        content = run_dir.read_run()
        task = ALL[content["trainer"]]
        assert isinstance(task, FunctionTask)
        writer = EventWriter(run_dir.events_jsonl)
        try:
            config = task.config_type.model_validate(content["config"])
            task.body(config, Progress(run_dir, writer))
        finally:
            writer.close()
        return json.loads((run_dir.path / "result.json").read_text())

    def __call__(self, task: str, **config: Any) -> dict[str, Any]:
        """The result of a new run."""
        return self.resume(self.new(task, **config))


def events_of(run_dir: RunDir, kind: str) -> list[dict[str, Any]]:
    """The run's events of one kind."""
    events = [json.loads(line) for line in run_dir.events_jsonl.read_text().splitlines()]
    return [event for event in events if event["kind"] == kind]


def paint(folder: Path, **colours: str) -> Path:
    """Images of one colour each, by name."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, colour in colours.items():
        Image.new("RGB", (20, 20), colour).save(folder / f"{name}.png")
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path / "runs")


@pytest.fixture
def tagger(tmp_path: Path) -> Path:
    """The folder of a real tagger."""
    return write_tagger(tmp_path / "tagger")


@pytest.fixture
def image_dir(tmp_path: Path) -> Path:
    """A folder with a red, a green and a blue image."""
    return paint(tmp_path / "pictures", red=RED, green=GREEN, blue=BLUE)


@pytest.fixture
def tag(runs: Runs, tagger: Path, image_dir: Path) -> Callable[..., dict[str, Any]]:
    """`tag(existing="append")`: the result of tagging the three images."""

    def run(**config: Any) -> dict[str, Any]:
        return runs("tag", **{"data_path": str(image_dir), "model_path": str(tagger)} | config)

    return run
