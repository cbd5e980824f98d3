"""A run on a JSONL with everything in it that can be wrong."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flowloom.engine.__main__ import run_engine
from flowloom.engine.build import build
from flowloom.engine.parallel.ranks import Ranks
from flowloom.errors import DataError
from flowloom.run.directory import RunDir
from flowloom.run.events import read_events

RED = (220, 40, 40)


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def bomb() -> bytes:
    """A PNG whose header claims 20,000 x 10,000 pixels."""
    image = bytearray(encoded(Image.new("1", (20_000, 10_000)), "PNG"))
    return bytes(image)


def good_files() -> dict[str, bytes]:
    red = Image.new("RGB", (64, 64), RED)
    turned = Image.Exif()
    turned[0x0112] = 6
    deep = Image.fromarray(np.full((64, 64), 40_000, np.uint16))
    clear = Image.new("RGBA", (64, 64), (*RED, 128))
    files = {f"plain {i} \u00e9\u732b.png": encoded(red, "PNG") for i in range(8)}
    return files | {
        "cmyk.jpg": encoded(red.convert("CMYK"), "JPEG"),
        "deep.png": encoded(deep, "PNG"),
        "clear.png": encoded(clear, "PNG"),
        "turned.jpg": encoded(Image.new("RGB", (64, 64), RED), "JPEG", exif=turned),
        "animated.webp": encoded(red, "WEBP", save_all=True, append_images=[Image.new("RGB", (64, 64))]),
    }


def line(filename: str, **changes: Any) -> str:
    row = {"filename": filename, "caption_or_tags": "a red thing", "width": 64, "height": 64} | changes
    return json.dumps({key: value for key, value in row.items() if value is not None})


@pytest.fixture
def hostile(tmp_path: Path) -> tuple[dict[str, Any], dict[int, str]]:
    """The data loader's keys, and for each bad line a word of what must be said about it."""
    folder = tmp_path / "images"
    folder.mkdir()
    files = good_files()
    lines = [line(name) for name in files]
    bad = {
        line("plain 0.png", width=0): "width is 0",
        line("plain 0.png", height=None): "height",
        line("plain 0.png", width="64"): "width",
        line("plain 0.png", loss_weight=7): "loss_weight",
        line("plain 0.png", caption_or_tags={"a": "b"}): "caption_or_tags",
        '{"filename": "plain 0.png", "caption': "JSON",
        "[1, 2, 3]": "object",
        line("../secret.png"): "leads out",
        line("missing.png"): "no such file",
        line("bomb.png"): "pixels",
        line("cut.jpg"): "not readable",
        line("text.png"): "not readable",
        line("ftp://host/a.png", is_url_based=True): "http",
        line("http://169.254.0.1:9/a.png", is_url_based=True): "FLOWLOOM_PRIVATE_HOSTS",
        line("http://127.0.0.1:9/a.png", is_url_based=True): "FLOWLOOM_PRIVATE_HOSTS",
        line("https://[fe80::1]/a.png", is_url_based=True): "FLOWLOOM_PRIVATE_HOSTS",
    }
    (tmp_path / "secret.png").write_bytes(files["plain 0 \u00e9\u732b.png"])
    files["bomb.png"] = bomb()
    files["cut.jpg"] = files["cmyk.jpg"][:-200]
    files["text.png"] = b"<html>not found</html>"
    for name, content in files.items():
        (folder / name).write_bytes(content)
    reasons = {len(lines) + number: word for number, word in enumerate(bad.values(), start=1)}
    (tmp_path / "data.jsonl").write_text("\n".join([*lines, *bad]) + "\n", encoding="utf-8")
    keys = {"jsonl_metadata_path": str(tmp_path / "data.jsonl"), "image_folder_path": str(folder)}
    return keys, reasons


def test_each_bad_row_is_named_and_the_others_are_trained(
    make_run: Callable[..., RunDir], hostile: tuple[dict[str, Any], dict[int, str]]
) -> None:
    keys, reasons = hostile
    run_dir = make_run(
        dataloader=keys, limits={"skipped_percentage": 0.6, "max_epochs": 2, "max_steps": None}
    )
    run_engine(run_dir)
    events = list(read_events(run_dir.events_jsonl))
    said = {event["line"]: event["reason"] for event in events if event["kind"] == "skipped"}
    assert said.keys() == reasons.keys()
    assert not {number: said[number] for number, word in reasons.items() if word not in said[number]}
    losses = [event["loss"] for event in events if event["kind"] == "step"]
    assert losses
    assert all(np.isfinite(losses))


def test_too_many_bad_rows_stop_the_run_with_the_list(
    make_run: Callable[..., RunDir], hostile: tuple[dict[str, Any], dict[int, str]]
) -> None:
    keys, _ = hostile
    with pytest.raises(DataError, match=r"data\.jsonl:14: width is 0") as caught:
        run_engine(make_run(dataloader=keys))
    assert "skipped_percentage" in str(caught.value)


def broken_images(folder: Path, num_good: int, num_broken: int) -> dict[str, Any]:
    """The data loader's keys of red images, the last ones broken."""
    rows = []
    for i in range(num_good + num_broken):
        content = encoded(Image.new("RGB", (64, 64), RED), "PNG")
        (folder / f"{i}.png").write_bytes(content if i < num_good else content[:60])
        rows.append(line(f"{i}.png"))
    (folder / "data.jsonl").write_text("\n".join(rows) + "\n")
    return {"jsonl_metadata_path": str(folder / "data.jsonl"), "image_folder_path": str(folder)}


def test_an_update_without_a_remaining_image_is_not_made(
    make_run: Callable[..., RunDir], tmp_path: Path
) -> None:
    """It would be reported as a step with no loss at all."""
    data = broken_images(tmp_path, num_good=5, num_broken=3)
    run_dir = make_run(
        dataloader=data | {"batch_size": 2},
        training={"updates_per_large_batch": 2},
        limits={"skipped_percentage": 0.5, "max_epochs": 2, "max_steps": None},
    )
    run_engine(run_dir)
    steps = [event for event in read_events(run_dir.events_jsonl) if event["kind"] == "step"]
    assert len(steps) == 2 * 5
    assert min(event["loss"] for event in steps) > 0


@pytest.mark.parametrize("seed", range(3))
def test_an_epoch_that_ends_with_broken_images_is_the_last_one(
    make_run: Callable[..., RunDir], tmp_path: Path, seed: int
) -> None:
    """Wherever the order puts them."""
    run_dir = make_run(
        dataloader=broken_images(tmp_path, num_good=1, num_broken=2) | {"batch_size": 1},
        training={"master_seed": seed},
        limits={"skipped_percentage": 1, "max_epochs": 1, "max_steps": None},
    )
    run_engine(run_dir)
    assert [event["step"] for event in read_events(run_dir.events_jsonl) if event["kind"] == "step"] == [1]


def test_held_out_rows_that_cannot_be_read_are_reported(
    make_run: Callable[..., RunDir], tmp_path: Path
) -> None:
    data = broken_images(tmp_path, num_good=12, num_broken=0)
    run_dir = make_run(
        dataloader=data,
        validation={"share": 0.3, "every": 1},
        limits={"max_steps": 2, "skipped_percentage": 1},
    )
    parts = build(run_dir.read_config(), Ranks())
    assert parts.validation is not None
    held_out = [sample for batch in parts.validation.batches(0) for sample in batch.samples]
    for sample in held_out:
        (tmp_path / sample.filename).write_bytes(b"no picture")
    run_engine(run_dir)
    events = list(read_events(run_dir.events_jsonl))
    skipped = {event["line"] for event in events if event["kind"] == "skipped"}
    assert skipped == {sample.line for sample in held_out}
    assert not [event for event in events if event["kind"] == "validated"], "there is nothing to measure"
