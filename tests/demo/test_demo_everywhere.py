"""The demo's own configuration, images and models give the same losses wherever the images come from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flowloom.cli.main import main
from flowloom.config.run import RunConfig
from flowloom.demo.images import DemoData, build
from flowloom.demo.network import write_base
from flowloom.engine.__main__ import run_engine
from flowloom.engine.fill_cache import fill
from flowloom.run.directory import RunDir
from flowloom.run.events import read_events
from flowloom.storage.base import StorageSection
from flowloom.tasks.demo import SIZE, demo_sections, model_section

pytestmark = pytest.mark.slow
STEPS = 3
DISK = {"latents": "disk", "text": "disk"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DemoData:
    """The images and models that `flowloom demo` makes first."""
    made = build(tmp_path_factory.mktemp("demo"), SIZE)
    write_base(made.folder / "chroma.safetensors")
    return made


@pytest.fixture
def config_of(data: DemoData) -> Callable[..., RunConfig]:
    """`config_of(dataloader={...}, ...)`: the demo's run but for these keys, over after a few steps."""
    demo = demo_sections(data.folder, model_section(data.folder / "chroma.safetensors"))
    few = {"limits": {"max_steps": STEPS}, "parallel": demo["parallel"] | {"num_threads": 1}}

    def make(**sections: dict[str, Any]) -> RunConfig:
        changed = {name: demo.get(name, {}) | keys for name, keys in (few | sections).items()}
        changed["limits"] = few["limits"]
        return RunConfig.model_validate(demo | changed)

    return make


def losses(config: RunConfig, run_dir: RunDir) -> list[float]:
    run_dir.write_run(config, "a test")
    run_engine(run_dir)
    events = list(read_events(run_dir.events_jsonl))
    assert not [event for event in events if event["kind"] == "skipped"]
    return [event["loss"] for event in events if event["kind"] == "step"]


def test_the_demo_trains_alike_from_a_jsonl_an_object_store_and_a_cache(
    data: DemoData,
    config_of: Callable[..., RunConfig],
    storage: StorageSection,
    tmp_path: Path,
) -> None:
    expected = losses(config_of(), RunDir.create("jsonl", tmp_path))
    assert len(expected) == STEPS

    remote, bucket = tmp_path / "remote.jsonl", f"s3://loom/{tmp_path.name}"
    upload = ["dataset", "upload", str(data.jsonl), bucket, "-o", str(remote)]
    assert main([*upload, "--endpoint", str(storage.endpoint)]) == 0
    assert all(json.loads(line)["filename"].startswith(bucket) for line in remote.read_text().splitlines())
    stored = config_of(dataloader={"jsonl_metadata_path": str(remote)}, storage=storage.model_dump())
    assert losses(stored, RunDir.create("store", tmp_path)) == expected

    cached = config_of(cache=DISK | {"dir": str(tmp_path / "cache")})
    assert losses(cached, RunDir.create("filling", tmp_path)) == expected
    filled = fill(cached)
    assert filled.images > 0
    assert not filled.skipped
    again = config_of(
        cache=DISK | {"dir": str(tmp_path / "cache")}, dataloader={"image_folder_path": str(data.folder)}
    )
    assert fill(again).images == 0
    assert losses(again, RunDir.create("filled", tmp_path)) == expected


def test_the_demo_trains_alike_from_a_folder(
    data: DemoData, config_of: Callable[..., RunConfig], tmp_path: Path
) -> None:
    """Captions in files beside the images, as `flowloom dataset build` reads them."""
    folder, rows = tmp_path / "folder", {}
    folder.mkdir()
    for line in data.jsonl.read_text().splitlines():
        row = json.loads(line)
        rows[row["filename"]] = row
    for name, row in rows.items():
        (folder / name).write_bytes((data.folder / name).read_bytes())
        (folder / name).with_suffix(".txt").write_text(row["caption_or_tags"])
    once = tmp_path / "once.jsonl"
    once.write_text("".join(json.dumps(row) + "\n" for row in rows.values()))
    built = tmp_path / "built.jsonl"
    assert main(["dataset", "build", str(folder), "-o", str(built), "--captions", "prose"]) == 0
    assert [json.loads(line) for line in built.read_text().splitlines()] == list(rows.values())
    by_hand = config_of(dataloader={"jsonl_metadata_path": str(once)})
    by_build = config_of(
        dataloader={"jsonl_metadata_path": str(built), "image_folder_path": str(folder)},
    )
    expected = losses(by_hand, RunDir.create("by-hand", tmp_path))
    assert losses(by_build, RunDir.create("by-build", tmp_path)) == expected
    assert len(expected) == STEPS
