"""Exports, merges and images as runs: made of a trained run, shown by the studio's own routes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flowloom.config.run import RunConfig
from flowloom.engine.__main__ import run_engine
from flowloom.model_library.scan import look
from flowloom.models.weights import open_weights, save_weights
from flowloom.run.directory import RunDir
from flowloom.run.events import EventWriter
from flowloom.tasks import ALL
from flowloom.tasks.base import FunctionTask, Progress
from flowloom.tasks.sample import SampleConfig, shots
from tests.engine.conftest import make_config, synthetic_data  # noqa: F401 -- fixtures
from tests.model_library.conftest import SDXL_UNET, write_model


@pytest.fixture(scope="module")
def trained(make_config: Callable[..., RunConfig], tmp_path_factory: pytest.TempPathFactory) -> RunDir:  # noqa: F811
    """A LoRA of two steps."""
    run_dir = RunDir.create("fox", tmp_path_factory.mktemp("trained") / "runs")
    config = make_config(lora={"rank": 2, "alpha": 4}, limits={"max_steps": 2}, training={"lr": 0.05})
    run_dir.write_run(config, "a test")
    run_engine(run_dir)
    return run_dir


class TaskRun:
    """A task in this process, in a separate run directory."""

    def __init__(self, runs_dir: Path, name: str, config: dict[str, Any]):
        self.task = ALL[name]
        self.run_dir = RunDir.create(name, runs_dir)
        self.config = self.task.config_type.model_validate(config)
        assert self.task.check(config) == []
        self.task.prepare(config, self.run_dir, "a test")
        self.stops_after: int | None = None

    def work(self) -> Any:
        """Work it off, as its process would; its result."""
        writer = EventWriter(self.run_dir.events_jsonl)
        progress = Stopping(self.run_dir, writer, self.stops_after)
        assert isinstance(self.task, FunctionTask)
        self.task.run(self.config, progress)
        writer.close()
        result = self.run_dir.path / "result.json"
        return json.loads(result.read_text()) if result.exists() else None

    def kinds(self) -> list[str]:
        return [json.loads(line)["kind"] for line in self.run_dir.events_jsonl.read_text().splitlines()]


class Stopping(Progress):
    """Is asked to stop after so many looks."""

    def __init__(self, run_dir: RunDir, writer: EventWriter, after: int | None):
        super().__init__(run_dir, writer)
        self._left = after

    def is_stopped(self) -> bool:
        if self._left is not None:
            self._left -= 1
            if self._left < 0:
                self.run_dir.request("stop")
        return super().is_stopped()


@pytest.fixture
def task_run(tmp_path: Path) -> Callable[..., TaskRun]:
    return lambda name, **config: TaskRun(tmp_path / "runs", name, config)


@pytest.mark.parametrize("form", ["comfy", "kohya", "diffusers"])
def test_a_lora_is_exported_to_where_it_can_be_downloaded(
    trained: RunDir, task_run: Callable[..., TaskRun], form: str
):
    run = task_run("export", source_path=str(trained.path), form=form)
    result = run.work()
    out = run.run_dir.path / "checkpoints" / f"fox-step_00000002-{form}.safetensors"
    assert result.pop("verified").startswith("24 layers, by the key rules of ")
    assert result == {"path": str(out), "size": out.stat().st_size}
    found = look(out)
    assert found.adapter
    # diffusers' scale is in the weights, so that its alpha counts as the rank.
    alpha = 2.0 if form == "diffusers" else 4.0
    assert (found.adapter.naming, found.adapter.rank, found.adapter.alpha) == (form, 2, alpha)
    assert (found.adapter.base, found.adapter.base_evidence) == ("chroma", "metadata")
    assert run.kinds()[-1] == "finished"


def test_an_export_goes_to_its_path_and_overwrites_nothing(
    trained: RunDir, task_run: Callable[..., TaskRun], tmp_path: Path
):
    out = tmp_path / "loras" / "fox.safetensors"
    config = {"source_path": str(trained.checkpoint_dir(2)), "out_path": str(out)}
    assert task_run("export", **config).work()["path"] == str(out)
    (problem,) = ALL["export"].check(config)
    assert problem.where == "out_path"
    assert "exists already" in problem.text


def test_a_lora_is_merged_into_its_base_with_progress(trained: RunDir, task_run: Callable[..., TaskRun]):
    run = task_run("merge", source_path=str(trained.path), strength=0.5)
    merged = open_weights(Path(run.work()["path"]))
    base = open_weights(Path(trained.read_config().model.chroma_path))
    assert merged.shapes == base.shapes
    name = "double_blocks.0.img_attn.qkv.weight"
    assert not (merged[name] == base[name]).all()
    last = [json.loads(line) for line in run.run_dir.events_jsonl.read_text().splitlines()][-2]
    assert last["kind"] == "progress"
    assert last["step"] == last["max_steps"] == len(base)


def test_a_merge_that_is_stopped_leaves_nothing_incomplete(trained: RunDir, task_run: Callable[..., TaskRun]):
    run = task_run("merge", source_path=str(trained.path))
    run.stops_after = 3
    assert run.work() is None
    assert list((run.run_dir.path / "checkpoints").iterdir()) == []
    assert run.kinds()[-1] == "stopped"


PICTURE = {"width": 32, "height": 32, "steps": 1, "cfg": 1.0, "parallel": {"device": "cpu", "num_threads": 1}}


def pixels(run: TaskRun, number: int) -> np.ndarray:
    return np.asarray(Image.open(run.run_dir.samples_dir(0) / f"{number:04d}.png")).astype(int)


def test_a_grid_is_generated_with_the_settings_of_each_image(
    trained: RunDir, task_run: Callable[..., TaskRun]
):
    grid = {"steps": [1, 2], "lora_strengths": [0.0, 1.0]}
    run = task_run("sample", source_path=str(trained.path), prompts=["red bar"], seed=7, grid=grid, **PICTURE)
    assert run.work() == {"num_images": 4}
    records = json.loads((run.run_dir.samples_dir(0) / "samples.json").read_text())
    assert [(record["steps"], record["lora_strength"]) for record in records] == [
        (1, 0),
        (1, 1),
        (2, 0),
        (2, 1),
    ]
    assert all(record["seed"] == 7 and record["prompt"] == "red bar" for record in records)
    assert run.kinds().count("sampled") == 4
    assert (pixels(run, 0) != pixels(run, 1)).any(), "the strength changes the picture"


def test_a_grid_goes_over_checkpoints_and_both_kinds_of_weights(
    trained: RunDir, task_run: Callable[..., TaskRun]
):
    sources = [str(trained.checkpoints()[-1]), str(trained.path)]
    grid = {"source_paths": sources, "weights": ["raw", "ema"]}
    run = task_run("sample", prompts=["red bar"], seed=7, grid=grid, **PICTURE)
    assert run.work() == {"num_images": 4}
    records = json.loads((run.run_dir.samples_dir(0) / "samples.json").read_text())
    assert [(record["source"], record["weights"]) for record in records] == [
        (source, weights) for source in sources for weights in ("raw", "ema")
    ]
    assert (pixels(run, 0) == pixels(run, 2)).all(), "a run is its newest checkpoint"


def test_the_strength_of_one_image_does_not_change_the_next(
    trained: RunDir, task_run: Callable[..., TaskRun]
):
    grid = {"lora_strengths": [1.0, 0.0, 2.0, 0.5, 1.0, 0.0]}
    run = task_run("sample", source_path=str(trained.path), prompts=["red bar"], grid=grid, **PICTURE)
    run.work()
    assert (pixels(run, 0) == pixels(run, 4)).all()
    assert (pixels(run, 1) == pixels(run, 5)).all()
    assert (pixels(run, 0) != pixels(run, 2)).any()


def test_images_continue_after_a_stop(trained: RunDir, task_run: Callable[..., TaskRun]):
    config = {"source_path": str(trained.path), "prompts": ["a", "b", "c"], "images_per_prompt": 2, **PICTURE}
    run = task_run("sample", **config)
    run.stops_after = 2
    assert run.work() is None
    assert run.kinds()[-1] == "stopped"
    first = run.run_dir.samples_dir(0) / "0000.png"
    made = first.stat().st_mtime_ns
    run.stops_after = None
    assert run.work() == {"num_images": 6}
    assert first.stat().st_mtime_ns == made, "what was drawn is not drawn again"
    records = json.loads((run.run_dir.samples_dir(0) / "samples.json").read_text())
    assert [(record["prompt"], record["seed"]) for record in records] == [
        (prompt, seed) for prompt in "abc" for seed in (0, 1)
    ]


def test_a_base_with_a_lora_generates_images_without_any_run(
    trained: RunDir, task_run: Callable[..., TaskRun], tmp_path: Path
):
    lora = Path(task_run("export", source_path=str(trained.path)).work()["path"])
    moved = lora.rename(tmp_path / "fox.safetensors")
    model = trained.read_config().model.model_dump(mode="json")
    loras = [{"lora_path": str(moved), "strength": 1.0}]
    run = task_run("sample", model=model, loras=loras, prompts=["red bar"], **PICTURE)
    assert run.work() == {"num_images": 1}
    (tmp_path / "own").mkdir()
    own = TaskRun(
        tmp_path / "own", "sample", {"source_path": str(trained.path), "prompts": ["red bar"], **PICTURE}
    )
    own.work()
    assert abs(pixels(run, 0) - pixels(own, 0)).max() <= 1


def problems(**config: Any) -> dict[str, str]:
    return {problem.where: problem.text for problem in ALL["sample"].check({"prompts": ["x"], **config})}


def test_tensors_that_are_left_out_are_reported_once(
    trained: RunDir, task_run: Callable[..., TaskRun], tmp_path: Path
):
    tensors = dict(open_weights(trained.checkpoint_dir(2) / "adapter.safetensors").items())
    tensors["text_encoders.t5xxl.transformer.shared.lora_A.weight"] = next(iter(tensors.values()))
    save_weights(tmp_path / "fox.safetensors", tensors, {})

    def warnings(run: TaskRun) -> list[str]:
        run.work()
        events = [json.loads(line) for line in run.run_dir.events_jsonl.read_text().splitlines()]
        return [event["message"] for event in events if event["kind"] == "warning"]

    loras = [{"lora_path": str(tmp_path / "fox.safetensors")}]
    sources = [str(trained.path), str(trained.checkpoint_dir(2))]
    sampled = task_run("sample", source_path=sources[0], loras=loras, prompts=["x"], steps=1, width=64,
                   height=64, cfg=1.0, grid={"source_paths": sources})  # fmt: skip
    exported = task_run("export", source_path=str(tmp_path / "fox.safetensors"))
    for run in (sampled, exported):
        (message,) = warnings(run)
        assert "fox.safetensors: some tensors are not used here (1 of a text encoder" in message


def test_images_that_cannot_be_generated_are_reported_before_the_start(trained: RunDir, tmp_path: Path):
    assert problems().keys() >= {"model.chroma_path", "model.vae_path", "model.t5_path"}
    assert problems(source_path=str(tmp_path / "gone")).keys() == {"source_path"}
    assert "neither a run" in problems(source_path=str(tmp_path))["source_path"]
    source = {"source_path": str(trained.path)}
    assert problems(**source) == {}
    assert "width" in problems(**source, width=100)
    many = {"steps": list(range(1, 101)), "cfg": [float(cfg) for cfg in range(50)]}
    assert "5,000 images" in problems(**source, grid=many)["grid"]
    network = write_model(tmp_path / "sdxl.safetensors", SDXL_UNET)
    texts = problems(**source, loras=[{"lora_path": str(network)}])
    assert "SDXL, not a LoRA" in texts["loras.0.lora_path"]
    layer = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
    other = write_model(tmp_path / "other.safetensors", {f"{layer}.lora_down.weight": (8, 2048)})
    assert "a LoRA for sdxl" in problems(**source, loras=[{"lora_path": str(other)}])["loras.0.lora_path"]


def test_no_setting_has_a_limit_of_ours(trained: RunDir):
    source = {"source_path": str(trained.path)}
    large = {"steps": 5000, "cfg": 250.0, "guidance": 101.0, "width": 16_384, "first_n_steps_wo_cfg": 2000}
    assert problems(**source, **large) == {}
    assert problems(**source, grid={"steps": [2000], "cfg": [500.0], "lora_strengths": [-40.0]}) == {}
    assert problems(**source, images_per_prompt=2000) == {}
    assert problems(**source, images_per_prompt=2001).keys() == {"images_per_prompt"}
    assert problems(**source, cfg=float("inf")).keys() == {"cfg"}


def test_a_merge_requires_a_base_of_its_kind(trained: RunDir, tmp_path: Path):
    network = write_model(tmp_path / "sdxl.safetensors", SDXL_UNET)
    lora = tmp_path / "alone.safetensors"
    lora.write_bytes((trained.checkpoint_dir(2) / "adapter.safetensors").read_bytes())
    (problem,) = ALL["merge"].check({"source_path": str(lora)})
    assert "is not recorded" in problem.text
    (problem,) = ALL["merge"].check({"source_path": str(lora), "base_path": str(network)})
    assert "is SDXL" in problem.text


def test_the_order_of_a_grid_is_the_order_of_its_files():
    config = SampleConfig(prompts=["a", "b"], grid={"cfg": [1, 4]}, seed=3)  # pyright: ignore[reportArgumentType]
    assert [(shot.stem, shot.prompt, shot.cfg, shot.seed) for shot in shots(config)] == [
        ("0000", "a", 1, 3),
        ("0001", "a", 4, 3),
        ("0002", "b", 1, 3),
        ("0003", "b", 4, 3),
    ]
