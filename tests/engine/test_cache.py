"""Training from a filled cache equals training without one, and needs neither VAE nor T5."""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flowloom.cli.cache import run as run_cache
from flowloom.config.run import RunConfig
from flowloom.engine.__main__ import run_engine
from flowloom.engine.build import build
from flowloom.engine.fill_cache import fill, prune, stats, verify
from flowloom.engine.parallel.ranks import Ranks
from flowloom.errors import DataError, WeightsError
from flowloom.run.directory import RunDir
from tests.fakes.files import Files

EPOCHS = {"max_steps": None, "max_epochs": 3}


def losses(run_dir: RunDir) -> list[float]:
    found: list[float] = []
    run_engine(run_dir, lambda event: found.append(event["loss"]) if event["kind"] == "step" else None)
    return found


def on_disk(folder: Path, **more: Any) -> dict[str, Any]:
    return {"latents": "disk", "text": "disk", "dir": str(folder), **more}


@pytest.mark.parametrize("sampling", ["mean", "draw"])
def test_losses_are_equal_without_a_cache_while_filling_it_and_from_it(
    make_run: Callable[..., RunDir],
    make_config: Callable[..., RunConfig],
    own_encoders: dict[str, str],
    tmp_path: Path,
    sampling: str,
) -> None:
    sections = {
        "limits": EPOCHS,
        "model": own_encoders,
        "validation": {"share": 0.2, "every": 5},
        "training": {"cfg_scale_strength": 2.0, "lr": 1e-3, "save_every": 1000},
    }
    plain = losses(make_run("plain", **sections, cache={"sampling": sampling}))
    by_itself = on_disk(tmp_path / "by-itself", sampling=sampling)
    assert losses(make_run("filling", **sections, cache=by_itself)) == plain
    cache = on_disk(tmp_path / "filled", sampling=sampling)
    report = fill(make_config(**sections, cache=cache))
    assert report.images == 22
    assert report.captions > 22
    shutil.rmtree(tmp_path / "encoders")
    assert losses(make_run("filled", **sections, cache=cache)) == plain
    assert losses(make_run("filled-by-itself", **sections, cache=by_itself)) == plain
    assert losses(make_run("memory", **(sections | {"model": {}}), cache={"sampling": sampling})) == plain


def test_a_cache_that_was_never_filled_asks_for_the_encoders(
    make_run: Callable[..., RunDir], own_encoders: dict[str, str], tmp_path: Path
) -> None:
    shutil.rmtree(tmp_path / "encoders")
    with pytest.raises(WeightsError, match="has no hash of it"):
        losses(make_run(model=own_encoders, cache=on_disk(tmp_path / "cache")))


def test_filling_again_does_nothing_and_a_changed_image_or_caption_is_encoded_again(
    make_config: Callable[..., RunConfig], synthetic_data: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(synthetic_data, data)
    loader = {"jsonl_metadata_path": str(data / "data.jsonl"), "image_folder_path": str(data)}
    config = make_config(dataloader=loader, cache=on_disk(tmp_path / "cache", caption_variants=2))
    first = fill(config)
    again = fill(config)
    assert (first.images, again.images, again.captions) == (22, 0, 0)
    shutil.copy(data / "01.png", data / "02.png")
    (data / "03.png").touch()
    changed = fill(config)
    assert (changed.images, changed.captions) == (0, 0), "these bytes are known, whatever the file is called"
    raw = (data / "01.png").read_bytes()
    (data / "05.png").write_bytes(raw + b"x")
    assert fill(config).images == 1
    rows = [json.loads(line) for line in (data / "data.jsonl").read_text().splitlines()]
    rows[0]["caption_or_tags"] = "something else"
    (data / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert 1 <= fill(config).captions <= 2
    assert fill(config.model_copy(update={"cache": config.cache.model_copy(update={"dtype": "bf16"})})).images


def test_two_ranks_fill_what_one_does(make_config: Callable[..., RunConfig], tmp_path: Path) -> None:
    config = make_config(cache=on_disk(tmp_path / "cache"))
    parts = [fill(config, rank=rank, world_size=2) for rank in (0, 1)]
    assert sum(part.images for part in parts) == 22
    assert min(part.images for part in parts) > 5
    assert fill(config).captions == 0
    assert stats(config).twice == 0


@pytest.mark.slow
def test_processes_fill_what_one_does(
    make_config: Callable[..., RunConfig], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = make_config(cache=on_disk(tmp_path / "cache"))
    path = tmp_path / "config.json"
    path.write_text(config.model_dump_json())
    dtype = ["--cache.dtype", "bf16"]
    assert run_cache(["fill", str(path), "--processes", "2", *dtype]) == 0
    said = capfd.readouterr().out
    assert "(share 1 of 2)" in said
    assert "(share 2 of 2)" in said
    halved = config.model_copy(update={"cache": config.cache.model_copy(update={"dtype": "bf16"})})
    filled = fill(halved)
    assert (filled.images, filled.captions) == (0, 0)
    assert stats(halved).twice == 0


def test_pruning_keeps_what_the_configurations_use(
    make_config: Callable[..., RunConfig], make_run: Callable[..., RunDir], tmp_path: Path
) -> None:
    small = make_config(cache=on_disk(tmp_path / "cache"))
    large = make_config(cache=on_disk(tmp_path / "cache"), dataloader={"base_resolution": [96]})
    fill(small)
    before = stats(small).kinds
    fill(large)
    assert stats(small).kinds["image-latents"][0] == 44
    assert prune([small, large])[0] == 0
    assert prune([small]) == (22, sum(count for count, _ in before.values()), "")
    assert stats(small).kinds == before
    assert list(verify(small)) == []
    assert fill(small).images == 0


def test_records_that_cannot_be_judged_are_not_pruned(
    make_config: Callable[..., RunConfig],
    synthetic_data: Path,
    tmp_path: Path,
    files: Files,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A server that is down, or a folder that is not mounted, says nothing of the images there."""
    monkeypatch.setenv("FLOWLOOM_PRIVATE_HOSTS", "127.0.0.1")
    rows = [json.loads(line) for line in (synthetic_data / "data.jsonl").read_text().splitlines()]
    for row in rows:
        files.contents[f"/{row['filename']}"] = (synthetic_data / row["filename"]).read_bytes()
        row |= {"filename": f"{files.url}/{row['filename']}", "is_url_based": True}

    def of(rows: list[dict[str, Any]]) -> RunConfig:
        path = tmp_path / "data.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        loader = {"jsonl_metadata_path": str(path), "tag_drop_percentage": 0.0, "shuffle_tags": False}
        plain = {"lowercase_percentage": 0.0}
        return make_config(dataloader=loader, objective=plain, cache=on_disk(tmp_path / "cache"))

    config = of(rows)
    assert fill(config).images == 22
    config = of([*rows[:-1], rows[-1] | {"caption_or_tags": "another"}])
    files.states = [503] * 1000
    pruned = prune([config])
    assert (pruned.dropped, stats(config).kinds["image-latents"][0]) == (1, 22), "the old caption alone"
    assert "data.jsonl:1: " in pruned.unjudged
    assert "503" in pruned.unjudged
    files.states = []
    del files.contents["/03.png"]
    assert prune([config])[::2] == (1, ""), "an image of which the server says that it is gone"

    config = make_config(
        cache=on_disk(tmp_path / "local"), dataloader={"image_folder_path": str(tmp_path / "disk")}
    )
    shutil.copytree(synthetic_data, tmp_path / "disk")
    assert fill(config).images == 22
    (tmp_path / "disk").rename(tmp_path / "away")
    pruned = prune([config])
    assert pruned.dropped == 0
    assert "no such file" in pruned.unjudged


def test_a_damaged_record_is_encoded_again_and_changes_nothing(
    make_run: Callable[..., RunDir], make_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    cache = on_disk(tmp_path / "cache")
    plain = losses(make_run("plain"))
    fill(make_config(cache=cache))
    for path in (tmp_path / "cache").glob("*.shard"):
        raw = bytearray(path.read_bytes())
        raw[200] ^= 255
        raw[len(raw) // 2] ^= 255
        path.write_bytes(raw)
    assert list(verify(make_config(cache=cache)))
    assert losses(make_run("damaged", cache=cache)) == plain


def test_a_full_cache_is_no_obstacle(
    make_run: Callable[..., RunDir], make_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    plain = losses(make_run("plain", limits=EPOCHS))
    cache = on_disk(tmp_path / "cache", limit_gib=20_000 / 2**30)
    assert "limit" in str(fill(make_config(cache=cache)).full)
    assert losses(make_run("full", limits=EPOCHS, cache=cache)) == plain


def test_shuffled_captions_come_back_after_their_variants(
    make_run: Callable[..., RunDir], make_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    cache = on_disk(tmp_path / "cache", caption_variants=2)
    report = fill(make_config(cache=cache))
    run = make_run(limits={"max_steps": None, "max_epochs": 5}, cache=cache)
    losses(run)
    assert stats(make_config(cache=cache)).kinds["caption-states"][0] == report.captions


def test_captions_that_are_shuffled_each_time_are_not_kept(
    make_run: Callable[..., RunDir], make_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    cache = on_disk(tmp_path / "cache", caption_variants=0)
    prose = fill(make_config(cache=cache)).captions
    assert 0 < prose <= 23
    assert losses(make_run("fly", limits=EPOCHS, cache=cache)) == losses(make_run("plain", limits=EPOCHS))
    assert stats(make_config(cache=cache)).kinds["caption-states"][0] == prose


def test_a_filled_cache_has_all_that_any_epoch_of_several_datasets_needs(
    make_run: Callable[..., RunDir],
    make_config: Callable[..., RunConfig],
    own_encoders: dict[str, str],
    synthetic_data: Path,
    tmp_path: Path,
) -> None:
    """Rows that do not come every epoch, and held-out rows of several captions."""
    other = tmp_path / "other"
    shutil.copytree(synthetic_data, other)
    rows = [json.loads(line) for line in (other / "data.jsonl").read_text().splitlines()]
    for number, row in enumerate(rows):
        path = other / f"other {number}.png"
        path.write_bytes((other / row["filename"]).read_bytes() + b"x")
        row |= {"filename": path.name, "caption_or_tags": [f"one {number}", f"two {number}"]}
    (other / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    section = {"jsonl_metadata_path": str(other / "data.jsonl"), "image_folder_path": str(other)}
    sections: dict[str, Any] = {
        "datasets": [section | {"repeats": 0.25}],
        "model": own_encoders,
        "validation": {"share": 0.3, "every": 4},
        "cache": on_disk(tmp_path / "cache", caption_variants=2),
    }
    assert fill(make_config(**sections)).images == 44
    shutil.rmtree(tmp_path / "encoders")
    assert losses(make_run(**sections, limits=EPOCHS))


@pytest.mark.parametrize("repeats", [0.5, 1, 5])
def test_all_captions_of_an_image_are_trained_from_a_filled_cache(
    make_run: Callable[..., RunDir],
    make_config: Callable[..., RunConfig],
    own_encoders: dict[str, str],
    synthetic_data: Path,
    tmp_path: Path,
    repeats: float,
) -> None:
    """Twelve captions for an image and eight variants of each; stopped and resumed within the first epoch."""
    lines = (synthetic_data / "data.jsonl").read_text().splitlines()[:4]
    rows = [json.loads(line) | {"caption_or_tags": [f"{n}, caption" for n in range(12)]} for line in lines]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    paths = {"jsonl_metadata_path": str(tmp_path / "data.jsonl"), "image_folder_path": str(synthetic_data)}
    epochs = math.ceil(12 / repeats)
    sections: dict[str, Any] = {
        "dataloader": {"jsonl_metadata_path": "", "uncond_percentage": 0.0},
        "datasets": [paths | {"repeats": repeats}],
        "model": own_encoders,
        "limits": {"max_steps": None, "max_epochs": epochs},
        "cache": on_disk(tmp_path / "cache"),
    }
    config = make_config(**sections)
    fill(config)
    loader = build(config, Ranks()).loader
    shown = Counter(
        (sample.row, sample.caption.lower().split(", caption")[0].removeprefix("caption, "))
        for epoch in range(epochs)
        for loaded in loader.batches(epoch)
        for sample in loaded.samples
    )
    assert set(shown) == {(row, str(n)) for row in range(4) for n in range(12)}
    assert max(shown.values()) - min(shown.values()) <= 1
    shutil.rmtree(tmp_path / "encoders")
    run_dir = make_run(**sections)
    run_engine(run_dir, lambda event: run_dir.request("stop") if event.get("step") == 1 else None)
    assert len(losses(run_dir)) > 1


def test_rows_that_a_fill_leaves_out_are_reported_with_their_dataset(
    make_config: Callable[..., RunConfig], synthetic_data: Path, tmp_path: Path
) -> None:
    """The same line of two files is two rows."""
    sections = []
    for name in ("one", "other"):
        shutil.copytree(synthetic_data, tmp_path / name)
        (tmp_path / name / "03.png").write_bytes(b"no picture")
        sections.append(
            {
                "jsonl_metadata_path": str(tmp_path / name / "data.jsonl"),
                "image_folder_path": str(tmp_path / name),
            }
        )
    config = make_config(
        dataloader=sections[0],
        datasets=sections[1:],
        cache=on_disk(tmp_path / "cache"),
        limits={"skipped_percentage": 0.04},
    )
    with pytest.raises(DataError) as caught:
        fill(config)
    assert all(f"{tmp_path / name / 'data.jsonl'}:4: " in str(caught.value) for name in ("one", "other"))
