"""Several datasets in one run: each row in its own folder, as often as it should, in its own sizes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from flowloom.config.model_files import check_files
from flowloom.config.run import RunConfig
from flowloom.data.cache.encodings import NoCache
from flowloom.data.captions import CaptionRules, vary
from flowloom.data.dataset import DatasetSource, repeats_of
from flowloom.data.loader import Loader, Sample, Skipped
from flowloom.data.metadata import JoinedMetadata, read_metadata
from flowloom.data.subjects import ImageInBucket
from flowloom.datasets.load import load_dataset
from flowloom.errors import DataError

PLAIN = CaptionRules(uncond=0.0, shuffle_tags=False, tag_drop=0.0, lowercase=0.0)


def make_section(folder: Path, name: str, num_rows: int, level: int, **fields: Any) -> dict[str, Any]:
    """Images of one grey with their JSONL; returns the section that names them."""
    own = folder / name
    own.mkdir()
    rows = []
    for i in range(num_rows):
        Image.new("RGB", (64, 64), (level,) * 3).save(own / f"{i}.png")
        row = {"filename": f"{i}.png", "caption_or_tags": f"{name} {i}", "width": 64, "height": 64}
        rows.append(row | fields)
    (own / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"jsonl_metadata_path": str(own / "data.jsonl"), "image_folder_path": str(own)}


def config_of(first: dict[str, Any] | None, *others: dict[str, Any], **sections: Any) -> RunConfig:
    data = {"base_resolution": [64], "resolution_step": 16} | (first or {})
    return RunConfig.model_validate({"dataloader": data, "datasets": others, **sections})


class AllCached(NoCache[ImageInBucket]):
    """A cache that has every image, and tensors too small to be any."""

    def get(self, subjects: Sequence[ImageInBucket]) -> list[torch.Tensor | None]:
        return [torch.zeros(1)] * len(subjects)


def make_loader(config: RunConfig, **options: Any) -> Loader:
    given: dict[str, Any] = {"rank": 0, "world_size": 1, "batch_size": 4, "threads": 2, "prefetch": 2}
    given |= {"latents": NoCache(), "rules": PLAIN, "seed": 0}
    return Loader(dataset=load_dataset(config).training, **(given | options))


def samples_of(loader: Loader, epoch: int = 0) -> list[Sample]:
    return [sample for batch in loader.batches(epoch) for sample in batch.samples]


def skipped_of(loader: Loader) -> list[Skipped]:
    return [skipped for batch in loader.batches(0) for skipped in batch.skipped]


def test_each_row_is_read_from_its_own_folder(tmp_path: Path) -> None:
    config = config_of(make_section(tmp_path, "cats", 5, 40), make_section(tmp_path, "dogs", 7, 200))
    samples = samples_of(make_loader(config))
    assert sorted(sample.row for sample in samples) == list(range(12))
    for sample in samples:
        assert sample.pixels is not None
        assert (sample.dataset, int(sample.pixels.mean())) in ((0, 40), (1, 200))
        assert sample.caption.startswith("cats" if sample.dataset == 0 else "dogs")


def test_without_a_first_one_the_others_are_all(tmp_path: Path) -> None:
    config = config_of(None, make_section(tmp_path, "dogs", 7, 200))
    assert [one.path.parent.name for one in load_dataset(config).sources] == ["dogs"]
    assert not [problem for problem in check_files(config) if "data" in problem.where]


def test_one_more_section_trains_as_the_dataloader_does(tmp_path: Path) -> None:
    """The same rows in the same order, whichever section names them."""
    section = make_section(tmp_path, "cats", 23, 40)
    orders = []
    for config in (config_of(section), config_of(None, section)):
        orders.append([sample.row for sample in samples_of(make_loader(config), epoch=3)])
    assert orders[0] == orders[1]


def test_repeats_are_exact_over_epochs(tmp_path: Path) -> None:
    second = make_section(tmp_path, "dogs", 10, 200) | {"repeats": 2.3}
    loader = make_loader(config_of(make_section(tmp_path, "cats", 6, 40), second))
    counts = Counter()
    for epoch in range(10):
        batches = list(loader.batches(epoch))
        assert len(batches) == loader.num_batches(epoch)
        of_epoch = Counter(sample.row for batch in batches for sample in batch.samples)
        assert sum(of_epoch.values()) == 6 + 23
        counts += of_epoch
    assert counts == dict.fromkeys(range(6), 10) | dict.fromkeys(range(6, 16), 23)


@pytest.mark.parametrize("repeats", [1, 1.3])
def test_epochs_follow_each_other_without_a_gap(tmp_path: Path, repeats: float) -> None:
    """Read on over the end of an epoch: the same batches as epoch by epoch, from anywhere on."""
    loader = make_loader(config_of(None, make_section(tmp_path, "cats", 7, 40) | {"repeats": repeats}))
    expected = [
        (epoch, batch.index, [sample.row for sample in batch.samples])
        for epoch in range(2, 6)
        for batch in loader.batches(epoch)
    ]
    for start in range(loader.num_batches(2)):
        found = []
        endless = loader.endless(2, start)
        for batch in islice(endless, len(expected) - start):
            assert batch.index < loader.num_batches(batch.epoch)
            found.append((batch.epoch, batch.index, [sample.row for sample in batch.samples]))
        assert found == expected[start:]


def test_nothing_to_train_is_an_error(tmp_path: Path) -> None:
    loader = make_loader(config_of(make_section(tmp_path, "cats", 3, 40, width=1000)))
    why = r"no row is left.*of 3, 3 are wider or taller than 2 to 1 \(ratio_cutoff\)"
    with pytest.raises(DataError, match=why):
        loader.endless(0)


def test_regularisation_comes_as_often_as_the_rest(tmp_path: Path) -> None:
    cats = make_section(tmp_path, "cats", 5, 40)
    dogs = make_section(tmp_path, "dogs", 4, 100) | {"repeats": 3}
    regular = make_section(tmp_path, "any", 40, 200) | {"is_regularisation": True, "loss_weight": 0.5}
    loader = make_loader(config_of(cats, dogs, regular))
    samples = samples_of(loader)
    assert Counter(sample.dataset for sample in samples) == {0: 5, 1: 12, 2: 17}
    assert {(sample.dataset, sample.loss_weight) for sample in samples} == {(0, 1.0), (1, 1.0), (2, 0.5)}
    seen = {sample.row for epoch in range(3) for sample in samples_of(loader, epoch) if sample.dataset == 2}
    assert len(seen) == 40


@given(
    counts=st.lists(st.integers(1, 10**6), min_size=1, max_size=5),
    weights=st.lists(st.floats(0.01, 100), min_size=5, max_size=5),
)
def test_weights_are_shares_of_the_samples(counts: list[int], weights: list[float]) -> None:
    sets = [DatasetSource(Path(), "", [64], [0], 16, 2.0, weight=weight) for weight in weights[: len(counts)]]
    num_samples = np.multiply(repeats_of(sets, counts), counts)
    assert num_samples.sum() == pytest.approx(sum(counts))
    shares = np.array(weights[: len(counts)]) / sum(weights[: len(counts)])
    assert num_samples / num_samples.sum() == pytest.approx(shares)


def test_sets_have_their_own_resolution_and_batch_size(tmp_path: Path) -> None:
    large = make_section(tmp_path, "dogs", 9, 200) | {"base_resolution": 128, "batch_size": 2}
    alike = make_section(tmp_path, "birds", 3, 90)
    batches = list(make_loader(config_of(make_section(tmp_path, "cats", 9, 40), large, alike)).batches(0))
    found = Counter((batch.size, len(batch.samples)) for batch in batches)
    # 9 cats and 3 birds share batches of 4.
    assert found == {((64, 64), 4): 3, ((128, 128), 2): 4, ((128, 128), 1): 1}


def test_each_resolution_can_have_its_batch_size(tmp_path: Path) -> None:
    first = make_section(tmp_path, "cats", 30, 40) | {"base_resolution": [64, 128]}
    batches = list(make_loader(config_of(first, batching={"sizes": [6, 2]})).batches(0))
    largest = {
        size: max(len(b.samples) for b in batches if b.size == size) for size in {b.size for b in batches}
    }
    assert largest == {(64, 64): 6, (128, 128): 2}


def test_batches_by_tokens_cost_about_the_same(tmp_path: Path) -> None:
    """16 tokens of image at 64, 64 at 128; captions of 7 characters are 4 more."""
    first = make_section(tmp_path, "cats", 100, 40, caption_or_tags="a" * 7) | {"base_resolution": [64, 128]}
    dataset = load_dataset(config_of(first, batching={"batch_tokens": 200}))
    plan = dataset.plan(1, 0, 0)
    costs = {(64, 64): 20, (128, 128): 68}
    totals = [len(plan[i].rows) * costs[dataset.buckets[plan[i].bucket].size] for i in range(len(plan))]
    assert max(totals) == 200
    assert sum(total < 200 - 68 for total in totals) <= 2
    assert sorted(plan.rows.tolist()) == list(range(100))


def test_a_broken_row_of_any_set_is_named_by_its_own_file(tmp_path: Path) -> None:
    cats, dogs = make_section(tmp_path, "cats", 5, 40), make_section(tmp_path, "dogs", 5, 200)
    with Path(dogs["jsonl_metadata_path"]).open("a") as file:
        file.write("no row\n")
    (tmp_path / "dogs" / "3.png").unlink()
    loader = make_loader(config_of(cats, dogs, limits={"skipped_percentage": 0.5}))
    assert [(skipped.dataset, skipped.line) for skipped in skipped_of(loader)] == [(1, 4)]
    (problem,) = loader.dataset.metadata.problems
    assert (problem.dataset, problem.line) == (1, 6)


def test_joined_rows_are_the_rows_of_their_files(tmp_path: Path) -> None:
    paths = [
        Path(make_section(tmp_path, name, n, 0)["jsonl_metadata_path"]) for name, n in (("a", 2), ("b", 3))
    ]
    joined = JoinedMetadata([read_metadata(path) for path in paths])
    rows = [joined.row(i) for i in range(len(joined))]
    assert [(row.index, row.dataset, row.caption) for row in rows] == [
        (0, 0, "a 0"), (1, 0, "a 1"), (2, 1, "b 0"), (3, 1, "b 1"), (4, 1, "b 2"),
    ]  # fmt: skip
    assert joined.row(-1).caption == "b 2"
    assert joined.lines.tolist() == [1, 2, 1, 2, 3]


def test_several_captions_alternate(tmp_path: Path) -> None:
    section = make_section(tmp_path, "cats", 8, 40, caption_or_tags=["one", "two", "three"])
    metadata = read_metadata(Path(section["jsonl_metadata_path"]))
    first = set()
    for i in range(8):
        seen = [vary(metadata.row(i), epoch, PLAIN, 0) for epoch in range(6)]
        assert set(seen[:3]) == {"one", "two", "three"}
        assert seen[:3] == seen[3:]
        first.add(seen[0])
    assert len(first) > 1


# Masks


def half_masked(folder: Path, name: str, kind: str) -> dict[str, Any]:
    """Images of which the left half counts."""
    section = make_section(folder, name, 4, 120)
    mask = np.zeros((64, 64), np.uint8)
    mask[:, :32] = 255
    if kind == "folder":
        masks = folder / f"{name}_masks"
        masks.mkdir()
        for i in range(4):
            Image.fromarray(mask).save(masks / f"{i}.png")
        return section | {"mask": "folder", "mask_folder_path": str(masks)}
    for i in range(4):
        with Image.open(folder / name / f"{i}.png") as image:
            image.putalpha(Image.fromarray(mask))
            image.save(folder / name / f"{i}.png")
    return section | {"mask": "alpha"}


@pytest.mark.parametrize("kind", ["alpha", "folder"])
@pytest.mark.parametrize("needs_pixels", [True, False])
@pytest.mark.parametrize("first", ["datasets", "dataloader"])
def test_masks_come_with_their_images(tmp_path: Path, kind: str, needs_pixels: bool, first: str) -> None:
    section = half_masked(tmp_path, "cats", kind) | {"unmasked_weight": 0.2}
    plain = make_section(tmp_path, "dogs", 2, 3)
    config = config_of(section, plain) if first == "dataloader" else config_of(None, section, plain)
    loader = make_loader(config, latents=NoCache() if needs_pixels else AllCached())
    for sample in samples_of(loader):
        if sample.dataset == 1:
            assert sample.mask is None
            continue
        assert sample.mask is not None
        assert sample.mask.shape == (64, 64)
        assert set(sample.mask[:, :24].flat) == {255}
        assert set(sample.mask[:, 40:].flat) == {51}
        assert (sample.pixels is not None) == needs_pixels


def test_a_missing_or_misshapen_mask_is_a_skipped_row(tmp_path: Path) -> None:
    section = half_masked(tmp_path, "cats", "folder")
    (tmp_path / "cats_masks" / "1.png").unlink()
    Image.new("L", (64, 32)).save(tmp_path / "cats_masks" / "2.png")
    (tmp_path / "cats_masks" / "3.png").write_bytes(b"no image")
    skipped = {s.line: s.reason for s in skipped_of(make_loader(config_of(None, section)))}
    assert set(skipped) == {2, 3, 4}
    assert "no mask: no such file" in skipped[2]
    assert "another aspect ratio" in skipped[3]
    assert "not readable" in skipped[4]


# The configuration


@pytest.mark.parametrize(
    ("section", "path"),
    [
        ({"repeats": 2, "weight": 1}, "datasets.0.weight"),
        ({"mask": "folder"}, "datasets.0.mask_folder_path"),
        ({"resolution_step": 512, "base_resolution": [256]}, "datasets.0.resolution_step"),
    ],
)
def test_contradictions_are_reported(section: dict[str, Any], path: str) -> None:
    with pytest.raises(ValueError, match=path):
        config_of(None, {"jsonl_metadata_path": "x.jsonl"} | section)
    with pytest.raises(ValueError, match=r"dataloader\.mask_folder_path"):
        config_of({"mask": "folder"})
    with pytest.raises(ValueError, match=r"batching\.sizes"):
        config_of(None, batching={"sizes": [1, 2]})


def test_missing_files_of_every_dataset_are_reported(tmp_path: Path) -> None:
    config = config_of(
        None,
        {"jsonl_metadata_path": str(tmp_path / "none.jsonl")},
        {"jsonl_metadata_path": "/none.jsonl", "image_folder_path": "/none"},
        {"jsonl_metadata_path": "/none.jsonl", "mask": "folder", "mask_folder_path": "/masks"},
    )
    paths = [problem.where for problem in check_files(config) if problem.where.startswith("data")]
    assert paths == [
        "datasets.0.jsonl_metadata_path",
        "datasets.1.jsonl_metadata_path",
        "datasets.1.image_folder_path",
        "datasets.2.jsonl_metadata_path",
        "datasets.2.mask_folder_path",
    ]
    first = config_of({"jsonl_metadata_path": "/none.jsonl", "mask": "folder", "mask_folder_path": "/masks"})
    assert "dataloader.mask_folder_path" in [problem.where for problem in check_files(first)]
