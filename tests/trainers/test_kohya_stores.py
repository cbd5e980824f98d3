"""Runs of sd-scripts with models and images in a bucket, which are copied before it starts."""

from __future__ import annotations

import os
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flowloom.errors import DiskFullError, SourceError, Unavailable
from flowloom.run.directory import RunDir
from flowloom.storage import folder_copy
from flowloom.storage.base import StorageSection
from flowloom.storage.folder_copy import Folder, copy_folder, missing_bytes
from flowloom.storage.local_copy import SILENT
from flowloom.storage.objects import Objects
from flowloom.storage.open import open_source
from flowloom.trainers.kohya.config import KohyaConfig
from flowloom.trainers.kohya.preflight import Asked, preflight
from flowloom.trainers.kohya.trainer import TRAINER
from tests.fakes.faulty import Faulty
from tests.fakes.images import encoded, photo
from tests.fakes.least_sd_scripts import let_it_take_everything
from tests.fakes.seaweed import KEY, SECRET
from tests.model_library.conftest import write_model

NUM_IMAGES = 40
BASE = {"double_blocks.0.img_mlp.0.weight": (16, 8), "single_blocks.0.linear1.weight": (16, 8)}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def bucket(tmp_path: Path, storage: StorageSection) -> Objects:
    """A folder of the store with images, captions, other files, and a base model."""
    store = open_source(f"s3://loom/{tmp_path.name}", storage)
    assert isinstance(store, Objects)
    for i in range(NUM_IMAGES):
        store.write(f"foxes/{i}.png", encoded(photo(i, 64, 64), "png"))
        store.write(f"foxes/{i}.txt", f"a fox {i}".encode())
    store.write("foxes/deeper/x.png", b"not read by sd-scripts")
    store.write("foxes/notes.zip", b"not an image")
    store.write("base.safetensors", write_model(tmp_path / "base.safetensors", BASE))
    return store


@pytest.fixture
def foxes(bucket: Objects) -> Folder:
    return Folder(f"{bucket.root}/foxes", (".png", ".txt"))


@pytest.fixture
def run_dir(
    kohya_config: Callable[..., dict[str, Any]],
    least_checkout: Path,
    bucket: Objects,
    faulty: Faulty,
    storage: StorageSection,
    tmp_path: Path,
) -> RunDir:
    """A prepared run of three steps, which reads through the proxy."""
    config = kohya_config(family="sd15", training={"max_train_steps": 3}, sampling={"prompts": ["a fox"]})
    config["storage"] = {"endpoint": faulty.url}
    config["model"]["pretrained_model_name_or_path"] = f"{bucket.root}/base.safetensors"
    config["datasets"][0]["subsets"][0]["image_dir"] = f"{bucket.root}/foxes"
    run_dir = RunDir.create("run", tmp_path / "runs")
    TRAINER.prepare(config, run_dir, "a test")
    return run_dir


def start(run_dir: RunDir, status: int = 0) -> tuple[list[dict[str, Any]], str]:
    """The events of one start, and its output."""
    command = TRAINER.command(run_dir, resume=False)
    assert SECRET not in " ".join(command.argv)
    environ = {**os.environ, **command.env}
    done = subprocess.run(
        command.argv, cwd=command.cwd, env=environ, capture_output=True, text=True, check=False, timeout=60
    )
    output = done.stdout + done.stderr
    assert done.returncode == status, output
    return [event for line in done.stdout.splitlines() if (event := TRAINER.parse(line.strip()))], output


def seen_reads(faulty: Faulty) -> list[str]:
    """The objects that are read from now on."""
    seen: list[str] = []

    def plan(_number: int, method: str, path: str) -> None:
        if method == "GET" and "list-type" not in path:
            seen.append(path.rpartition("/")[2])

    faulty.plan = plan
    return seen


def test_a_run_trains_on_copies_of_its_bucket_and_copies_only_changes_again(
    run_dir: RunDir, bucket: Objects, faulty: Faulty
) -> None:
    seen = seen_reads(faulty)
    events, output = start(run_dir)
    phases = [event["name"] for event in events if event["kind"] == "phase"]
    assert "downloading base.safetensors" in phases
    assert any(phase.startswith("copying 80 files") for phase in phases)
    assert [event["step"] for event in events if event["kind"] == "step"] == [1, 2, 3]
    (subset,) = tomllib.loads((run_dir.path / "dataset.toml").read_text())["datasets"][0]["subsets"]
    arguments = tomllib.loads((run_dir.path / "config.toml").read_text())["arguments"]
    copy = Path(subset["image_dir"])
    assert sorted(path.name for path in copy.iterdir()) == sorted(
        f"{i}{suffix}" for i in range(NUM_IMAGES) for suffix in (".png", ".txt")
    )
    assert all((copy / f"{i}.png").read_bytes() == bucket.read(f"foxes/{i}.png") for i in range(NUM_IMAGES))
    assert Path(arguments["pretrained_model_name_or_path"]).read_bytes() == bucket.read("base.safetensors")
    written = [path.read_text(errors="replace") for path in run_dir.path.rglob("*") if path.is_file()]
    assert not [text for text in [*written, output] if SECRET in text or KEY in text]
    # The second start reads only new content, and drops the encodings of what is gone or new.
    seen.clear()
    bucket.write("foxes/3.txt", b"another fox")
    bucket.delete("foxes/4.png")
    for name in ("3_0064x0064_te.npz", "4_0064x0064.npz", "5_0064x0064.npz"):
        (copy / name).touch()
    start(run_dir)
    assert seen == ["3.txt"]
    assert (copy / "3.txt").read_text() == "another fox"
    assert not (copy / "4.png").exists()
    assert [path.name for path in copy.glob("*.npz")] == ["5_0064x0064.npz"]


def test_a_stop_ends_the_copy_and_the_next_start_continues_it(run_dir: RunDir, faulty: Faulty) -> None:
    seen: list[str] = []

    def plan(_number: int, method: str, path: str) -> None:
        if method == "GET" and path.endswith((".png", ".txt")):
            seen.append(path)
            if len(seen) == 20:
                run_dir.request("stop")

    faulty.plan = plan
    events, _ = start(run_dir)
    assert events[-1]["kind"] == "stopped"
    assert not [event for event in events if event["kind"] == "step"]
    assert 20 <= len(seen) < 2 * NUM_IMAGES
    before = len(seen)
    start(run_dir)
    assert len(set(seen)) == 2 * NUM_IMAGES
    assert len(seen) <= 2 * NUM_IMAGES + folder_copy.FILES_AT_ONCE, f"{before} were read before"


def test_without_access_the_run_ends_with_the_reason(
    run_dir: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-wrong-secret")
    run_dir.run_json.write_text(
        run_dir.run_json.read_text().replace('"patience_minutes": 60.0', '"patience_minutes": 0.0')
    )
    _, output = start(run_dir, status=2)
    assert "access denied" in output
    assert "a-wrong-secret" not in output


def test_a_copy_needs_room_before_it_begins(
    foxes: Folder, storage: StorageSection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flowloom.storage.downloads.fetch.SPARE", 2**60)
    with pytest.raises(DiskFullError, match="MiB are free"):
        copy_folder(foxes, storage, SILENT)
    assert not any(path.is_file() for path in foxes.path.iterdir())


def test_a_copy_in_use_is_never_changed(foxes: Folder, bucket: Objects, storage: StorageSection) -> None:
    with copy_folder(foxes, storage, SILENT), copy_folder(foxes, storage, SILENT):
        bucket.write("foxes/0.txt", b"changed")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(folder_copy, "LOCK_PATIENCE_S", 0.1)
            with pytest.raises(SourceError, match="another run trains on its copy"):
                copy_folder(foxes, storage, SILENT)
        assert (foxes.path / "0.txt").read_text() == "a fox 0"
    copy_folder(foxes, storage, SILENT).close()
    assert (foxes.path / "0.txt").read_text() == "changed"


def test_bytes_that_differ_from_their_checksum_are_not_kept(
    foxes: Folder, storage: StorageSection, faulty: Faulty
) -> None:
    through = storage.model_copy(update={"endpoint": faulty.url})
    garbled: list[str] = []

    def plan(_number: int, method: str, path: str) -> str | None:
        if method == "GET" and path.endswith("/7.txt") and not garbled:
            garbled.append(path)
            return "garbled"
        return None

    faulty.plan = plan
    with pytest.raises(Unavailable, match=r"7\.txt: two reads differ"):
        copy_folder(foxes, through, SILENT)
    assert not (foxes.path / "7.txt").exists()
    assert missing_bytes(foxes, through) > 0
    copy_folder(foxes, through, SILENT).close()
    assert (foxes.path / "7.txt").read_text() == "a fox 7"


def test_the_preflight_counts_what_will_be_copied(
    run_dir: RunDir, least_checkout: Path, bucket: Objects, tmp_path: Path
) -> None:
    let_it_take_everything(least_checkout, "flux_train_network.py")
    config = run_dir.read_config_as(KohyaConfig).model_dump(mode="json")
    config |= {"family": "chroma", "sampling": {}}
    config["model"] |= dict.fromkeys(("ae", "t5xxl"), f"{bucket.root}/base.safetensors")
    report = preflight(KohyaConfig.model_validate(config), Asked(tmp_path))
    assert report.disk is not None
    assert report.disk.parts["copies from the bucket"] > 40 * 64
    assert report.memory is not None
    assert report.memory.parts["network"] > 0
    assert any("images are counted" in hint for hint in report.hints)
    assert not (tmp_path / "cache" / "flowloom" / "folders").exists()


@pytest.mark.parametrize(
    ("key", "value"), [("image_dir", "https://host/foxes"), ("network_args", "preset=s3://bucket/a.toml")]
)
def test_other_addresses_are_refused(
    kohya_config: Callable[..., dict[str, Any]], least_checkout: Path, key: str, value: str
) -> None:
    config = kohya_config(network={"network_args": [value]} if key == "network_args" else {})
    if key == "image_dir":
        config["datasets"][0]["subsets"][0][key] = value
    problems = [problem for problem in TRAINER.check(config) if key in problem.where]
    assert ["is a URL" in problem.message for problem in problems] == [True]
