"""The updates of a large batch: the same rows on any number of ranks, and none without a sample."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch

from flowloom.config.flow_format.read import LoadedConfig
from flowloom.config.run import RunConfig
from flowloom.data.loader import SampleBatch
from flowloom.engine.__main__ import run_engine
from flowloom.engine.build import build
from flowloom.engine.estimate.plan import make_plan
from flowloom.engine.parallel.ranks import Ranks
from flowloom.errors import DataError
from flowloom.models.weights import open_weights
from flowloom.run.directory import RunDir
from flowloom.run.events import read_events
from flowloom.run.resume import change_by_flags
from tests.engine.processes import run_ranks

T = TypeVar("T")

LARGE_BATCH = {
    "training": {"updates_per_large_batch": 3, "lr": 1e-3, "train_minibatch": 1, "warmup_steps": 0},
    "dataloader": {"batch_size": 5},
}


def copy_of(synthetic_data: Path, folder: Path, **changes: Any) -> dict[str, Any]:
    """The synthetic images in `folder`, each row changed; a `dataloader` section that reads them."""
    shutil.copytree(synthetic_data, folder)
    path = folder / "data.jsonl"
    rows = [json.loads(line) | changes for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"jsonl_metadata_path": str(path), "image_folder_path": str(folder)}


class LoneRank(Ranks):
    """A rank of several, whose others do not run."""

    def gathered(self, values: list[T]) -> list[T]:
        return values


def updates_in(loaded: SampleBatch) -> Iterator[list[int]]:
    rows = iter(sample.row for sample in loaded.samples)
    for size in loaded.update_sizes:
        yield [next(rows) for _ in range(size)]


def rows_of_updates(config: RunConfig, world_size: int) -> list[list[int]]:
    """The rows of every update of an epoch, over all ranks."""
    of_ranks = []
    for rank in range(world_size):
        loader = build(config, LoneRank(rank, world_size)).loader
        of_ranks.append([rows for loaded in loader.batches(0) for rows in updates_in(loaded)])
    return [[row for part in parts for row in part] for parts in zip(*of_ranks, strict=True)]


def test_any_number_of_ranks_trains_the_same_rows_in_each_update(
    make_config: Callable[..., RunConfig], synthetic_data: Path, tmp_path: Path
) -> None:
    """A file that cannot be read moves no other row into another update."""
    data = copy_of(synthetic_data, tmp_path / "images")
    for packs in (False, True):
        sections = LARGE_BATCH | {"batching": {"pack_aspect_ratios": packs}}
        alone = rows_of_updates(make_config(**sections), 1)
        assert sorted(row for rows in alone for row in rows) == list(range(22))
        assert all(alone)
        for world_size in (2, 3):
            assert rows_of_updates(make_config(**sections), world_size) == alone
        (tmp_path / "images" / "03.png").write_bytes(b"no image")
        broken = make_config(**sections | {"dataloader": {"batch_size": 5} | data})
        expected = [[row for row in rows if row != 3] for rows in alone]
        for world_size in (1, 2, 3):
            assert rows_of_updates(broken, world_size) == expected


def steps_of(run_dir: RunDir, num_ranks: int) -> list[dict[str, Any]]:
    """The step events of the run, made by so many processes."""
    if num_ranks == 1:
        run_engine(run_dir)
    else:
        assert run_ranks(run_dir, num_ranks) == 0
    return [event for event in read_events(run_dir.events_jsonl) if event["kind"] == "step"]


def test_no_step_is_made_without_a_sample(
    make_run: Callable[..., RunDir], synthetic_data: Path, tmp_path: Path
) -> None:
    """Updates of one row each; of the broken row's update nothing is left."""
    data = copy_of(synthetic_data, tmp_path / "images")
    (tmp_path / "images" / "03.png").write_bytes(b"no image")
    run_dir = make_run(
        training={"updates_per_large_batch": 4, "warmup_steps": 0, "lr": 1e-3},
        dataloader={"batch_size": 4} | data,
        limits={"max_steps": None, "max_epochs": 1},
    )
    steps = steps_of(run_dir, 1)
    assert len(steps) == 21
    assert all(event["loss"] > 0 for event in steps)
    checkpoint = run_dir.latest_checkpoint()
    assert checkpoint is not None
    assert json.loads((checkpoint / "state" / "trainer.json").read_text())["samples"] == 21


def weights_of(run_dir: RunDir) -> dict[str, torch.Tensor]:
    checkpoint = run_dir.latest_checkpoint()
    assert checkpoint is not None
    return {
        f"{path.name}:{name}": tensor.clone()
        for path in sorted(checkpoint.rglob("*.safetensors"))
        for name, tensor in open_weights(path).items()
    }


@pytest.mark.slow
def test_two_ranks_that_stop_within_a_large_batch_resume_bit_for_bit(make_run: Callable[..., RunDir]) -> None:
    whole = make_run("whole", **LARGE_BATCH, limits={"max_steps": 5})
    pieces = make_run("pieces", **LARGE_BATCH, limits={"max_steps": 2})
    expected = [event["loss"] for event in steps_of(whole, 2)]
    steps_of(pieces, 2)
    change_by_flags(pieces, [("limits.max_steps", "5")])
    assert [event["loss"] for event in steps_of(pieces, 2)] == expected
    found = weights_of(pieces)
    for name, weight in weights_of(whole).items():
        assert torch.equal(found[name], weight), name


def test_rows_of_weight_zero_make_no_step(
    make_run: Callable[..., RunDir],
    make_config: Callable[..., RunConfig],
    synthetic_data: Path,
    tmp_path: Path,
) -> None:
    """Momentum and weight decay would move the weights; a run of nothing else ends after a report of it."""
    zero = copy_of(synthetic_data, tmp_path / "zero", loss_weight=0)
    sections: dict[str, Any] = {
        "datasets": [copy_of(synthetic_data, tmp_path / "some")],
        "limits": {"max_steps": None, "max_epochs": 1},
        "training": {"updates_per_large_batch": 2},
    }
    run_dir = make_run(dataloader={"batch_size": 2} | zero, **sections)
    steps = steps_of(run_dir, 1)
    assert 22 <= len(steps) < 44
    assert all(event["loss"] > 0 for event in steps)
    sections["datasets"] = []
    with pytest.raises(DataError, match="epoch 1 made no step"):
        run_engine(make_run("nothing", dataloader=zero, limits={"max_steps": 3}))
    plan = make_plan(LoadedConfig(make_config(dataloader=zero), {}, [], Path("config.json")))
    assert "every row has loss_weight 0" in str(plan.problems)


def test_epochs_in_which_no_row_is_due_are_skipped(
    make_run: Callable[..., RunDir], synthetic_data: Path, tmp_path: Path
) -> None:
    """An image with 0.4 repeats comes in epochs 1 and 3 of five; the run is stopped and resumed between."""
    line = (synthetic_data / "data.jsonl").read_text().splitlines()[0]
    (tmp_path / "one.jsonl").write_text(f"{line}\n")
    paths = {"jsonl_metadata_path": str(tmp_path / "one.jsonl"), "image_folder_path": str(synthetic_data)}
    run_dir = make_run(
        dataloader={"jsonl_metadata_path": ""},
        datasets=[paths | {"repeats": 0.4}],
        limits={"max_steps": None, "max_epochs": 5},
    )
    plan = make_plan(LoadedConfig(run_dir.read_config(), {}, [], Path("config.json")))
    assert plan.problems == []
    run_engine(run_dir, lambda event: run_dir.request("stop") if event.get("step") == 1 else None)
    assert [event["epoch"] for event in steps_of(run_dir, 1)] == [1, 3]
    assert list(read_events(run_dir.events_jsonl))[-1]["kind"] == "finished"
