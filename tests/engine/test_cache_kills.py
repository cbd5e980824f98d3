"""`flowloom cache` by several processes at once, killed again and again: nothing doubled, nothing lost."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flowloom.cli.main import main
from flowloom.config.run import RunConfig
from flowloom.data.cache.shard_stores import LocalShards
from flowloom.data.cache.store import Cache
from flowloom.engine.fill_cache import fill, stats, verify
from tests.engine.processes import ForkedProcess

pytestmark = pytest.mark.slow
IMAGES, RANKS, KILLS = 240, 2, 3


@pytest.fixture
def many(tmp_path: Path) -> dict[str, Any]:
    """Keys of `dataloader` for images that take a second or two to encode."""
    draw, rows = np.random.default_rng(0), []
    for i in range(IMAGES):
        Image.fromarray(draw.integers(0, 256, (64, 64, 3), np.uint8)).save(tmp_path / f"{i}.png")
        rows.append({"filename": f"{i}.png", "caption_or_tags": f"noise {i}", "width": 64, "height": 64})
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"jsonl_metadata_path": str(tmp_path / "data.jsonl"), "image_folder_path": str(tmp_path)}


def filler(path: Path, rank: int) -> ForkedProcess:
    """One of the processes that fill the cache of the configuration in `path`."""
    ranks = {"RANK": str(rank), "WORLD_SIZE": str(RANKS)}
    return ForkedProcess(main, ["cache", "fill", str(path)], environ=ranks)


def wait_until_it_writes(folder: Path, processes: list[ForkedProcess]) -> None:
    """Until a process writes a shard, or all have ended: what is killed while it loads gets nowhere."""
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and any(process.poll() is None for process in processes):
        if any(path.stat().st_size for path in folder.glob("*.open")):
            return
        time.sleep(0.01)


def records(folder: Path) -> dict[bytes, tuple[str, int]]:
    """Kind and checksum of every record, by key."""
    store = LocalShards(folder)
    shards = [store.open(name) for name in store.names()]
    found = [shard.record(row) for shard in shards for row in range(len(shard.columns))]
    return {record.key: (record.kind, record.checksum) for record in found}


def test_processes_killed_at_random_moments_double_and_lose_nothing(
    make_config: Callable[..., RunConfig],
    many: dict[str, Any],
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    seed = int.from_bytes(os.urandom(4))
    record_property("seed", seed)
    draw, kills = random.Random(seed), 0

    def config_at(name: str) -> RunConfig:
        cache = {"latents": "disk", "text": "disk", "dir": str(tmp_path / name)}
        return make_config(dataloader=many, objective={"lowercase_percentage": 0.0}, cache=cache)

    whole, killed = config_at("whole"), config_at("killed")
    assert fill(whole).images == IMAGES
    path = tmp_path / "config.json"
    path.write_text(killed.model_dump_json())
    folder = tmp_path / "killed"
    for _ in range(KILLS):
        processes = [filler(path, rank) for rank in range(RANKS)]
        wait_until_it_writes(folder, processes)
        for process in processes:
            time.sleep(draw.uniform(0, 0.4))
            process.send_signal(signal.SIGKILL)
            status = process.wait()
            assert status in (0, -signal.SIGKILL), process.output()
            kills += status != 0
    assert kills > 1, f"seed {seed}: they were over before the first kill"
    before = set(records(folder))
    processes = [filler(path, rank) for rank in range(RANKS)]
    for process in processes:
        assert process.wait(120) == 0, process.output()
    assert not list(folder.glob("*.open")), "what the killed left is taken in"
    assert before <= records(folder).keys(), f"seed {seed}: something that was there is gone"
    assert records(folder) == records(tmp_path / "whole"), f"seed {seed}"
    statistics = stats(killed)
    assert statistics.twice == 0, f"seed {seed}: encoded twice"
    assert statistics.kinds["image-latents"][0] == IMAGES
    assert list(verify(killed)) == []
    again = fill(killed)
    assert (again.images, again.captions) == (0, 0)
    assert not Cache(LocalShards(folder)).faults
