"""The same images from a folder, a web server, an object store and a filled cache train alike."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from flowloom.engine.__main__ import run_engine
from flowloom.run.directory import RunDir
from flowloom.run.events import read_events
from flowloom.storage.base import StorageSection
from flowloom.storage.open import open_source
from tests.fakes.faulty import Faulty
from tests.fakes.seaweed import Seaweed

pytestmark = pytest.mark.slow


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def web(synthetic_data: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The folder of the images, served."""
    monkeypatch.setenv("FLOWLOOM_PRIVATE_HOSTS", "127.0.0.1")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(synthetic_data)))
    thread = threading.Thread(target=server.serve_forever, args=[0.02])
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def losses(run_dir: RunDir) -> list[float]:
    run_engine(run_dir)
    events = list(read_events(run_dir.events_jsonl))
    assert not [event for event in events if event["kind"] == "skipped"]
    return [event["loss"] for event in events if event["kind"] == "step"]


def with_names(synthetic_data: Path, out: Path, prefix: str) -> dict[str, Any]:
    """The same rows, each image at an address."""
    rows = [json.loads(line) for line in (synthetic_data / "data.jsonl").read_text().splitlines()]
    named = [row | {"filename": f"{prefix}/{row['filename']}", "is_url_based": True} for row in rows]
    out.write_text("".join(json.dumps(row) + "\n" for row in named))
    return {"jsonl_metadata_path": str(out)}


def test_losses_are_equal_wherever_the_images_come_from(
    make_run: Callable[..., RunDir],
    synthetic_data: Path,
    tmp_path: Path,
    seaweed: Seaweed,
    storage: StorageSection,
    web: str,
) -> None:
    bucket = f"{seaweed.bucket}/{tmp_path.name}"
    store = open_source(f"s3://{bucket}/set", storage)
    for path in synthetic_data.glob("*.png"):
        store.write(path.name, path)
    stored = storage.model_dump()
    cache = {"latents": "disk", "text": "disk"}
    runs: dict[str, dict[str, Any]] = {
        "web": {"dataloader": with_names(synthetic_data, tmp_path / "web.jsonl", web)},
        "s3 names": {
            "dataloader": with_names(synthetic_data, tmp_path / "s3.jsonl", f"s3://{bucket}/set"),
            "storage": stored,
        },
        "s3 folder": {"dataloader": {"image_folder_path": f"s3://{bucket}/set"}, "storage": stored},
        "cache, filled by the run": {"cache": cache | {"dir": str(tmp_path / "cache")}},
        "cache, filled": {"cache": cache | {"dir": str(tmp_path / "cache")}},
        "cache of what is in the store": {
            "dataloader": {"image_folder_path": f"s3://{bucket}/set"},
            "storage": stored,
            "cache": cache | {"dir": str(tmp_path / "other")},
        },
        "cache in the store": {"storage": stored, "cache": cache | {"dir": f"s3://{bucket}/cache"}},
        "cache in the store, filled": {
            "storage": stored, "cache": cache | {"dir": f"s3://{bucket}/cache"},
        },
    }  # fmt: skip
    expected = losses(make_run("folder", limits={"max_steps": 8}))
    assert len(expected) == 8
    for name, sections in runs.items():
        found = losses(make_run(name.replace(" ", "-").replace(",", ""), limits={"max_steps": 8}, **sections))
        assert found == expected, name


def test_a_stop_is_followed_while_a_store_is_down(
    make_run: Callable[..., RunDir],
    synthetic_data: Path,
    tmp_path: Path,
    faulty: Faulty,
    storage: StorageSection,
) -> None:
    store = open_source(f"s3://loom/{tmp_path.name}", storage)
    for path in synthetic_data.glob("*.png"):
        store.write(path.name, path)
    stored = storage.model_dump() | {"endpoint": faulty.url, "read_ahead_mib": 0.01}
    run_dir = make_run(
        "run",
        dataloader={"image_folder_path": f"s3://loom/{tmp_path.name}", "batch_size": 2, "prefetch_factor": 1},
        storage=stored,
        limits={"max_steps": 1000},
    )

    def outage(event: dict[str, Any]) -> None:
        if event["kind"] == "step" and event["step"] == 2:
            faulty.down()
        if event["kind"] == "warning":
            run_dir.request("stop")

    run_engine(run_dir, outage)
    events = list(read_events(run_dir.events_jsonl))
    assert [event["kind"] for event in events][-2:] == ["saved", "stopped"]
    step = events[-1]["step"]
    assert 2 <= step < 1000
    assert run_dir.latest_checkpoint() == run_dir.checkpoint_dir(step)
