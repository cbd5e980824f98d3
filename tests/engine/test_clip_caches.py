"""Clips of a tiny Wan through the loader and the cache: from folders, a store and the web; key by key."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("av", reason="needs av")

from flowloom.config.model_files import resolve_paths
from flowloom.config.run import ModelSection, RunConfig
from flowloom.data.cache.encodings import NoCache
from flowloom.data.cache.setup import PLAIN
from flowloom.data.fetch.image_source import ImageSource
from flowloom.data.loader import Loader, Sample
from flowloom.datasets.build.build import build
from flowloom.datasets.build.options import BuildOptions
from flowloom.datasets.load import load_dataset
from flowloom.engine.fill_cache import fill, verify
from flowloom.errors import ConfigError
from flowloom.storage.base import StorageSection
from flowloom.storage.open import open_source
from tests.data.video.films import numbers_of, write_film
from tests.fakes.files import Files
from tests.families import wan

MakeConfig = Callable[..., RunConfig]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("wan")
    wan.save(folder)
    return resolve_paths(ModelSection(path=str(folder)), Path()).model_dump()


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two films of 40 and 12 frames at 24 frames/s, an image, and their data.jsonl."""
    folder = tmp_path_factory.mktemp("films")
    write_film(folder / "long.mp4", 40, sound=True)
    write_film(folder / "short.mp4", 12)
    shutil.copy(Path(__file__).parents[2] / "docs" / "studio-phone.png", folder / "still.png")
    for name in ("long", "short", "still"):
        (folder / f"{name}.txt").write_text(f"a film, {name}")
    build(str(folder), folder / "data.jsonl", BuildOptions(), lambda _: None)
    return folder


@pytest.fixture
def config_of(model: dict[str, Any], films: Path, tmp_path: Path) -> MakeConfig:
    def make(folder: str = str(films), jsonl: Path = films / "data.jsonl", **sections: Any) -> RunConfig:
        data = {"jsonl_metadata_path": str(jsonl), "image_folder_path": folder}
        usual = {
            "model": model,
            "dataloader": data | {"base_resolution": [32], "resolution_step": 16, "ratio_cutoff": 4.0},
            "video": {"num_frames": [5, 9], "fps": 12},
            "cache": {"latents": "disk", "text": "disk", "dir": str(tmp_path / "cache")},
        }
        return RunConfig.model_validate(usual | sections)

    return make


def samples_of(config: RunConfig, images: ImageSource | None = None) -> dict[str, Sample]:
    loader = Loader(
        dataset=load_dataset(config), rules=PLAIN, seed=0, rank=0, world_size=1, batch_size=2, threads=2,
        prefetch=2, latents=NoCache(), images=images or ImageSource(config.storage),
    )  # fmt: skip
    batches = list(loader.batches(0))
    assert not [skipped for batch in batches for skipped in batch.skipped]
    for batch in batches:
        shape = (batch.num_frames, batch.size[1], batch.size[0], 3)
        assert all(sample.pixels is not None and sample.pixels.shape == shape for sample in batch.samples)
    return {Path(sample.filename).name: sample for batch in batches for sample in batch.samples}


def pixels_of(sample: Sample) -> NDArray[np.uint8]:
    assert sample.pixels is not None
    return sample.pixels


def test_clips_and_images_load_in_buckets_of_their_frames(config_of: MakeConfig):
    samples = samples_of(config_of())
    frames = {name: len(pixels_of(sample)) for name, sample in samples.items()}
    assert frames == {"long.mp4": 9, "short.mp4": 5, "still.png": 1}
    assert numbers_of(pixels_of(samples["long.mp4"])) == [0, 2, 4, 6, 8, 10, 12, 14, 16]
    assert load_dataset(config_of()).summary()["buckets"] == {"32x32x5": 1, "32x32x9": 1, "16x48": 1}


def test_batches_of_clips_have_a_budget_of_tokens(config_of: MakeConfig, films: Path, tmp_path: Path):
    row = json.loads((films / "data.jsonl").read_text().splitlines()[0])
    path = tmp_path / "many.jsonl"
    rows = [row | {"num_frames": 40 if i % 2 else 12, "caption_or_tags": ""} for i in range(24)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    dataset = load_dataset(config_of(jsonl=path, batching={"batch_tokens": 60}))
    plan = dataset.plan(1, 0, 0)
    by_size = sorted(range(len(plan)), key=lambda i: len(plan[i].rows))
    sizes = {dataset.buckets[plan[i].bucket]: len(plan[i].rows) for i in by_size}
    # Tokens of a clip: planes of latents times a plane's tokens, and 2 for the caption.
    for bucket, num_rows in sizes.items():
        tokens = ((bucket.num_frames - 1) // 4 + 1) * bucket.width * bucket.height // 256 + 2
        assert num_rows == min(60 // tokens, 12)
    assert sorted(plan.rows.tolist()) == list(range(24))


def test_a_number_of_frames_that_the_autoencoder_cannot_encode_is_rejected(config_of: MakeConfig):
    with pytest.raises(
        ConfigError, match=r"video.num_frames: is 8; .* encodes 4n \+ 1 frames. Set it to 5 or 9"
    ):
        load_dataset(config_of(video={"num_frames": [8]}))


def test_the_cache_holds_each_clip_once_and_knows_what_changes_it(
    config_of: MakeConfig, films: Path, tmp_path: Path
):
    first = fill(config_of())
    assert (first.images, first.captions) == (3, 4)
    assert fill(config_of()).images == 0
    assert not list(verify(config_of()))
    # Each of these is other pixels: a frame rate, a number of frames, a start.
    assert fill(config_of(video={"num_frames": [5, 9], "fps": 24})).images == 2
    assert fill(config_of(video={"num_frames": [5], "fps": 12})).images == 1
    rows = [json.loads(line) for line in (films / "data.jsonl").read_text().splitlines()]
    moved = tmp_path / "moved.jsonl"
    moved.write_text("".join(json.dumps(row | {"start_s": 0.25, "num_frames": 6}) + "\n" for row in rows[:1]))
    assert not samples_of(config_of(jsonl=moved))
    assert "clips of fewer than 5 frames" in load_dataset(config_of(jsonl=moved)).why_empty
    moved.write_text(
        "".join(json.dumps(row | {"start_s": 0.25, "num_frames": 30}) + "\n" for row in rows[:1])
    )
    assert fill(config_of(jsonl=moved)).images == 1
    assert fill(config_of(jsonl=moved)).images == 0
    parts = [
        fill(config_of(cache={"latents": "disk", "dir": str(tmp_path / "new")}), rank=i, world_size=2)
        for i in (0, 1)
    ]
    assert sum(part.images for part in parts) == 3


def test_clips_of_a_store_are_those_of_the_folder(
    config_of: MakeConfig, films: Path, storage: StorageSection, tmp_path: Path
):
    source = open_source("s3://loom/clips", storage)
    for name in ("long.mp4", "short.mp4", "still.png"):
        source.write(name, films / name)
    settings = storage.model_dump() | {"cache_dir": str(tmp_path / "copies")}
    config = config_of(folder="s3://loom/clips", storage=settings)
    local = samples_of(config_of())
    for _ in range(2):
        for name, sample in samples_of(config).items():
            assert np.array_equal(pixels_of(sample), pixels_of(local[name]))
    assert fill(config).images == 3
    assert fill(config).images == 0


def test_a_store_s_video_is_read_in_parts(films: Path, tmp_path: Path, files: Files):
    from flowloom.data.buckets import Bucket
    from flowloom.data.fetch.ranged_file import BLOCK_BYTES, RangedFile
    from flowloom.data.video.decode import Clip, load_clip

    noise = np.random.default_rng(0)
    path = write_film(
        tmp_path / "large.mkv", 160, options={"crf": "0"},
        frame_of=lambda number: noise.integers(0, 255, (160, 256, 3), np.uint8),
    )  # fmt: skip
    assert path.stat().st_size > 5 * BLOCK_BYTES
    files.contents["/large.mkv"] = path.read_bytes()
    file = RangedFile(open_source(files.url, StorageSection()), "large.mkv")
    clip = load_clip(file, Clip(1.0, 24), Bucket(256, 160, 3), 10)
    assert np.array_equal(clip, load_clip(path, Clip(1.0, 24), Bucket(256, 160, 3), 10))
    assert file.bytes_read < path.stat().st_size / 2
