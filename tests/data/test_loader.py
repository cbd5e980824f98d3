"""Batches hold what the JSONL says, in any number of threads; what is broken is left out and said."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from flowloom.config.run import RunConfig
from flowloom.data.cache.encodings import NoCache
from flowloom.data.captions import CaptionRules
from flowloom.data.loader import Dataset, Loader
from flowloom.data.subjects import ImageInBucket
from flowloom.datasets.load import load_dataset
from flowloom.errors import DataError, ImageError
from flowloom.storage.local import find_image

PLAIN = CaptionRules(uncond=0.0, shuffle_tags=False, tag_drop=0.0, lowercase=0.0)


def make_dataset(folder: Path, rows: list[dict[str, Any]], **sections: Any) -> Dataset:
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {
        "jsonl_metadata_path": str(folder / "data.jsonl"),
        "image_folder_path": str(folder),
        "base_resolution": [64],
        "resolution_step": 16,
    }
    return load_dataset(RunConfig.model_validate({"dataloader": data, **sections}))


class AllCached(NoCache[ImageInBucket]):
    """A cache that has every image, and tensors too small to be any."""

    def get(self, subjects: Sequence[ImageInBucket]) -> list[torch.Tensor | None]:
        return [torch.zeros(1)] * len(subjects)


def make_loader(dataset: Dataset, threads: int = 2, **options: Any) -> Loader:
    defaults: dict[str, Any] = {
        "rules": PLAIN,
        "seed": 0,
        "rank": 0,
        "world_size": 1,
        "batch_size": 4,
        "threads": threads,
        "prefetch": 2,
        "latents": NoCache(),
    }
    return Loader(dataset=dataset, **(defaults | options))


@pytest.fixture
def ten(tmp_path: Path) -> list[dict[str, Any]]:
    """Rows of ten grey images, each with a different grey."""
    rows = []
    for i in range(10):
        Image.new("RGB", (64, 64), (i * 20,) * 3).save(tmp_path / f"{i}.png")
        rows.append({"filename": f"{i}.png", "caption_or_tags": f"grey {i}", "width": 64, "height": 64})
    return rows


@pytest.mark.parametrize("threads", [1, 4])
def test_captions_stay_with_their_images(tmp_path: Path, ten: list[dict[str, Any]], threads: int) -> None:
    loader = make_loader(make_dataset(tmp_path, ten), threads)
    batches = list(loader.batches(0))
    assert [len(batch.samples) for batch in batches].count(4) == 2
    samples = [sample for batch in batches for sample in batch.samples]
    assert sorted(sample.row for sample in samples) == list(range(10))
    for sample in samples:
        assert sample.pixels is not None
        assert sample.pixels.mean() == sample.row * 20
        assert sample.caption == f"grey {sample.row}"


def test_an_epoch_can_be_resumed_anywhere(tmp_path: Path, ten: list[dict[str, Any]]) -> None:
    loader = make_loader(make_dataset(tmp_path, ten))
    whole = [[s.row for s in batch.samples] for batch in loader.batches(3)]
    assert len(whole) == loader.num_batches(3) == 3
    for start in range(4):
        assert [[s.row for s in batch.samples] for batch in loader.batches(3, start)] == whole[start:]


def test_leaving_an_epoch_early_leaves_no_thread(tmp_path: Path, ten: list[dict[str, Any]]) -> None:
    loader = make_loader(make_dataset(tmp_path, ten))
    for _ in range(3):
        batches = loader.batches(0)
        next(batches)
        batches.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert not [t for t in threading.enumerate() if t.name.startswith("loader")]


def test_a_broken_image_is_skipped_and_reported(tmp_path: Path, ten: list[dict[str, Any]]) -> None:
    (tmp_path / "3.png").write_bytes(b"not an image")
    (tmp_path / "5.png").unlink()
    ten[7]["filename"] = "../../outside.png"
    batches = list(make_loader(make_dataset(tmp_path, ten)).batches(0))
    rows = {sample.row for batch in batches for sample in batch.samples}
    assert rows == set(range(10)) - {3, 5, 7}
    skipped = {skip.line: skip.reason for batch in batches for skip in batch.skipped}
    assert set(skipped) == {4, 6, 8}
    assert "no such file" in skipped[6]
    assert "leads out of" in skipped[8]


def test_too_many_unusable_lines_stop_before_training(tmp_path: Path, ten: list[dict[str, Any]]) -> None:
    ten[0]["width"] = 0
    with pytest.raises(DataError, match=r"1 of 10 rows"):
        make_dataset(tmp_path, ten)
    assert len(make_dataset(tmp_path, ten, limits={"skipped_percentage": 0.1}).metadata) == 9


def test_unneeded_images_are_not_read(tmp_path: Path, ten: list[dict[str, Any]]) -> None:
    dataset = make_dataset(tmp_path, ten)
    for i in range(10):
        (tmp_path / f"{i}.png").unlink()
    loader = make_loader(dataset, latents=AllCached())
    samples = [sample for batch in loader.batches(0) for sample in batch.samples]
    assert len(samples) == 10
    assert all(sample.pixels is None for sample in samples)


def test_ranks_share_each_batch(tmp_path: Path, ten: list[dict[str, Any]]) -> None:
    dataset = make_dataset(tmp_path, ten)
    whole = [[s.row for s in batch.samples] for batch in make_loader(dataset).batches(0)]
    parts = [
        [[s.row for s in batch.samples] for batch in make_loader(dataset, rank=r, world_size=3).batches(0)]
        for r in range(3)
    ]
    assert [a + b + c for a, b, c in zip(*parts, strict=True)] == whole


def test_held_out_rows_stay_the_same_when_rows_are_added(tmp_path: Path, ten: list[dict[str, Any]]) -> None:
    share = {"validation": {"share": 0.4}}
    few = make_dataset(tmp_path, ten[:7], **share)
    many = make_dataset(tmp_path, ten, **share)
    assert few.held_out.any()
    assert (few.held_out == many.held_out[:7]).all()
    assert not ((few.training.row_buckets >= 0) & (few.validation(100).row_buckets >= 0)).any()


def test_each_row_has_one_of_several_resolutions(tmp_path: Path, ten: list[dict[str, Any]]) -> None:
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ten * 20))
    config = {
        "jsonl_metadata_path": str(tmp_path / "data.jsonl"),
        "base_resolution": [64, 128],
        "resolution_step": 16,
    }
    dataset = load_dataset(RunConfig.model_validate({"dataloader": config}))
    widths = np.array([dataset.buckets[bucket].width for bucket in dataset.row_buckets])
    assert 60 < (widths == 64).sum() < 140
    assert set(widths) == {64, 128}


def test_a_jxl_twin_wins_then_the_file_then_other_formats(tmp_path: Path) -> None:
    for name in ("a.webp", "b.png", "b.jxl", "c.jpg"):
        (tmp_path / name).touch()
    found = {name: find_image(tmp_path, name).name for name in ("a.png", "b.png", "c.jpg")}
    assert found == {"a.png": "a.webp", "b.png": "b.jxl", "c.jpg": "c.jpg"}
    for name in ("missing.png", "../x.png", "/etc/passwd"):
        with pytest.raises(ImageError):
            find_image(tmp_path, name)
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "link.png").symlink_to("/etc/passwd")
    with pytest.raises(ImageError, match="leads out of"):
        find_image(tmp_path / "inner", "link.png")
