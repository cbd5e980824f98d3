"""A run's results come as one zip, whole, and with nothing that is not the run's."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from flowloom.server.zip_stream import CHUNK_BYTES, stream_zip
from tests.server.conftest import Studio

WEIGHTS = bytes(range(256)) * 20_000


@pytest.fixture
def run(one_studio: Studio) -> Path:
    """A run with two checkpoints, a preview, and links that lead out."""
    run = one_studio.home / "runs" / "foxes"
    for step in (100, 200):
        folder = run / "checkpoints" / f"step_{step:08}"
        (folder / "state").mkdir(parents=True, exist_ok=True)
        (folder / "adapter.safetensors").write_bytes(WEIGHTS)
        (folder / "state" / "optimizer.safetensors").write_bytes(b"large")
    outside = one_studio.home.parent / "outside.txt"
    outside.write_text("somebody else's")
    parts = run / "checkpoints" / "step_00000200" / "unet"
    parts.mkdir(exist_ok=True)
    (parts / "config.json").write_text("{}")
    link = run / "checkpoints" / "step_00000200" / "link.safetensors"
    if not link.is_symlink():
        link.symlink_to(outside)
    sample_dir = run / "samples" / "step_00000100"
    sample_dir.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(sample_dir / "füchse.png")
    (run / "run.json").write_text(json.dumps({"config": {}}))
    (run / "log.txt").write_text("loaded\n")
    return run


def zip_entries(studio: Studio, run: Path, **params: str | bool) -> dict[str, bytes]:
    """The entries of the zip, each checked."""
    answer = studio.http.get(f"/api/runs/{run.name}/results.zip", params=params)
    assert answer.headers["content-type"] == "application/zip"
    assert answer.headers["content-disposition"] == f'attachment; filename="{run.name}.zip"'
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.testzip() is None
        return {name: archive.read(name) for name in archive.namelist()}


def test_the_zip_has_the_newest_weights_images_and_records(one_studio: Studio, run: Path):
    found = zip_entries(one_studio, run)
    assert found.keys() == {
        "foxes/run.json",
        "foxes/log.txt",
        "foxes/checkpoints/step_00000200/adapter.safetensors",
        "foxes/checkpoints/step_00000200/unet/config.json",
        "foxes/samples/step_00000100/füchse.png",
    }
    assert found["foxes/checkpoints/step_00000200/adapter.safetensors"] == WEIGHTS


def test_all_checkpoints_or_none_by_choice(one_studio: Studio, run: Path):
    def names(**params: str | bool) -> list[str]:
        return [name for name in zip_entries(one_studio, run, **params) if "checkpoints" in name]

    assert names(checkpoints="all", samples=False) == [
        "foxes/checkpoints/step_00000200/adapter.safetensors",
        "foxes/checkpoints/step_00000200/unet/config.json",
        "foxes/checkpoints/step_00000100/adapter.safetensors",
    ]
    assert names(checkpoints="none") == []
    assert "foxes/samples/step_00000100/füchse.png" not in zip_entries(one_studio, run, samples=False)


def test_of_kohya_s_the_newest_weights_come_and_not_the_state_beside_them(one_studio: Studio):
    run = one_studio.home / "runs" / "kohyas"
    state = run / "checkpoints" / "last-step00000300-state"
    state.mkdir(parents=True)
    save_file({"w": np.zeros(2, np.float32)}, run / "checkpoints" / "last-step00000300.safetensors")
    (state / "model.safetensors").write_bytes(b"large")
    (run / "run.json").write_text(json.dumps({"config": {}, "trainer": "kohya"}))
    for which in ("newest", "all"):
        found = zip_entries(one_studio, run, checkpoints=which)
        assert found.keys() == {"kohyas/run.json", "kohyas/checkpoints/last-step00000300.safetensors"}


def test_a_run_that_is_not_there_has_none(one_studio: Studio):
    assert one_studio.http.get("/api/runs/nobody/results.zip").status_code == 404


def test_files_that_grow_or_vanish_meanwhile_leave_a_complete_zip(tmp_path: Path):
    growing, going = tmp_path / "growing", tmp_path / "going"
    growing.write_bytes(b"a" * 3 * CHUNK_BYTES)
    going.write_bytes(b"b")
    pieces = stream_zip([("growing", growing), ("going", going)])
    content = next(pieces)
    with growing.open("ab") as file:
        file.write(b"a" * CHUNK_BYTES)
    going.unlink()
    content += b"".join(pieces)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.namelist() == ["growing"]
        assert archive.read("growing") == b"a" * 4 * CHUNK_BYTES


def test_no_more_than_pieces_are_in_memory(tmp_path: Path):
    large = tmp_path / "large"
    large.write_bytes(bytes(20 * CHUNK_BYTES))
    assert max(map(len, stream_zip([("large", large)]))) < 2 * CHUNK_BYTES
