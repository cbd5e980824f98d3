"""Models named by URL: downloaded once, continued after an interruption, and checked without a download."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flowloom.cli.main import main
from flowloom.config.flow_format.read import load_config
from flowloom.config.remote_models import with_model_headers
from flowloom.engine.__main__ import run_engine
from flowloom.errors import ConfigError, DiskFullError, NotFound, SourceError
from flowloom.models.header import read_header
from flowloom.run.directory import RunDir
from flowloom.run.events import read_events
from flowloom.storage import local_copy as copies
from flowloom.storage.base import StorageSection
from flowloom.storage.downloads.fetch import Watch, sha256_of
from flowloom.storage.local_copy import SILENT, header_copy, local_copy
from flowloom.storage.open import open_source
from tests.fakes.faulty import Faulty


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def models(tiny_family: Any, storage: StorageSection, tmp_path: Path) -> dict[str, str]:
    """The tiny family in the store, by the keys that name it; the rest is found beside the T5."""
    url = f"s3://loom/{tmp_path.name}/models"
    store = open_source(url, storage)
    store.write("chroma.safetensors", tiny_family.chroma_path)
    store.write("ae.safetensors", tiny_family.vae_path)
    for path in tiny_family.t5_path.iterdir():
        store.write(f"t5/{path.name}", path)
    return {
        "chroma_path": f"{url}/chroma.safetensors",
        "vae_path": f"{url}/ae.safetensors",
        "t5_path": f"{url}/t5",
        "t5_config_path": "",
        "t5_tokenizer_path": "",
    }


def losses(run_dir: RunDir) -> list[float]:
    return [event["loss"] for event in read_events(run_dir.events_jsonl) if event["kind"] == "step"]


def counting(storage: StorageSection, faulty: Faulty) -> tuple[StorageSection, list[str]]:
    """Access through a proxy, and the paths that were read."""
    seen: list[str] = []

    def plan(_number: int, method: str, path: str) -> None:
        if method == "GET" and "list-type" not in path:
            seen.append(path)

    faulty.plan = plan
    return storage.model_copy(update={"endpoint": faulty.url, "tries": 1}), seen


@pytest.mark.slow
def test_a_run_with_models_in_a_bucket_equals_one_with_local_files(
    make_run: Callable[..., RunDir], models: dict[str, str], storage: StorageSection, faulty: Faulty
) -> None:
    local = make_run("local", limits={"max_steps": 3})
    run_engine(local)
    counted, seen = counting(storage, faulty)
    remote = make_run("remote", model=models, storage=counted.model_dump(), limits={"max_steps": 3})
    run_engine(remote)
    assert losses(remote) == losses(local)
    phases = [e["name"] for e in read_events(remote.events_jsonl) if e["kind"] == "phase"]
    assert "downloading chroma.safetensors" in phases
    assert json.loads(remote.run_json.read_text())["config"]["model"]["vae_path"] == models["vae_path"]
    # The second run reads nothing but what the store says about the files.
    seen.clear()
    again = make_run("again", model=models, storage=counted.model_dump(), limits={"max_steps": 3})
    run_engine(again)
    assert losses(again) == losses(local)
    assert seen == []


@pytest.mark.slow
def test_checks_read_headers_only(
    models: dict[str, str],
    storage: StorageSection,
    faulty: Faulty,
    make_config: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tiny_family: Any,
) -> None:
    monkeypatch.setattr(copies, "SMALL", 10_000)
    counted, _ = counting(storage, faulty)
    config = make_config(model=models, storage=counted.model_dump())
    path = tmp_path / "config.json"
    path.write_text(config.model_dump_json(exclude_unset=True))
    assert main(["train", str(path), "--dry-run"]) == 0, capsys.readouterr().out
    text = capsys.readouterr().out
    assert "Ready to train." in text
    assert main(["preflight", str(path), "--runs-dir", str(tmp_path)]) == 0
    headers = with_model_headers(config).model
    assert read_header(headers.network_path) == read_header(tiny_family.chroma_path)
    assert headers.network_path.stat().st_size == tiny_family.chroma_path.stat().st_size
    assert headers.network_path.stat().st_blocks * 512 < tiny_family.chroma_path.stat().st_size / 10
    assert headers.t5_tokenizer_path.endswith("t5")
    assert not (tmp_path / "cache" / "flowloom" / "copies").exists()


def test_an_interrupted_download_continues(
    models: dict[str, str], storage: StorageSection, tiny_family: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copies, "PIECE", 2**16)
    total = tiny_family.chroma_path.stat().st_size

    class Stopped(Exception):
        pass

    done: list[int] = []

    def until_half(have: int, _total: int | None) -> None:
        done.append(have)
        if have > total / 2:
            raise Stopped

    watch = Watch(until_half, lambda: None)
    with pytest.raises(Stopped):
        local_copy(models["chroma_path"], storage, watch)
    had = done[-1]
    done.clear()
    path = local_copy(models["chroma_path"], storage, Watch(lambda have, _: done.append(have), lambda: None))
    assert path.read_bytes() == tiny_family.chroma_path.read_bytes()
    assert done[0] == min(total, had + 4 * 2**16)
    note = json.loads(path.with_name(f"{path.name}.note.json").read_text())
    assert note["sha256"] == sha256_of(tiny_family.chroma_path, SILENT)


def test_a_replaced_object_is_downloaded_again_even_in_the_middle(
    models: dict[str, str], storage: StorageSection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copies, "PIECE", 100)
    url = f"s3://loom/{tmp_path.name}/models"
    store = open_source(url, storage)
    store.write("file.bin", b"a" * 1000)
    assert local_copy(f"{url}/file.bin", storage).read_bytes() == b"a" * 1000
    store.write("file.bin", b"b" * 1000)
    assert local_copy(f"{url}/file.bin", storage).read_bytes() == b"b" * 1000
    store.write("file.bin", b"c" * 1000)

    def replace(_have: int, _total: int | None) -> None:
        store.write("file.bin", b"d" * 1000)

    with pytest.raises(SourceError, match="changed while it was downloaded"):
        local_copy(f"{url}/file.bin", storage, Watch(replace, lambda: None))
    assert local_copy(f"{url}/file.bin", storage).read_bytes() == b"d" * 1000


def test_two_runs_that_start_at_once_download_once(
    models: dict[str, str], storage: StorageSection, tiny_family: Any
) -> None:
    phases: list[str] = []
    watch = Watch(lambda *_: None, lambda: None, phases.append)
    found: list[Path] = []
    threads = [
        threading.Thread(target=lambda: found.append(local_copy(models["vae_path"], storage, watch)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
    assert len(found) == 4
    assert found[0].read_bytes() == tiny_family.vae_path.read_bytes()
    assert phases == ["downloading ae.safetensors"]


def test_without_the_store_an_earlier_copy_is_used_with_a_warning(
    models: dict[str, str], storage: StorageSection, faulty: Faulty
) -> None:
    through = storage.model_copy(update={"endpoint": faulty.url, "tries": 1, "patience_minutes": 0.0})
    path = local_copy(models["vae_path"], through)
    faulty.down()
    warnings: list[str] = []
    watch = Watch(lambda *_: None, lambda: None, warn=warnings.append)
    assert local_copy(models["vae_path"], through, watch) == path
    assert "The copy from an earlier run is used." in warnings[0]
    with pytest.raises(SourceError):
        local_copy(models["chroma_path"], through, watch)


def test_a_full_disk_and_a_missing_object_are_clear_errors(
    models: dict[str, str], storage: StorageSection, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(NotFound, match="no such object"):
        header_copy(f"{models['t5_path']}-of-nobody", storage)
    wrong = models | {"vae_path": f"{models['vae_path']}.old"}
    with pytest.raises(ConfigError) as caught:
        load_config({"model": wrong, "storage": storage.model_dump()}, [], Path("x"), with_files=True)
    assert [p.where for p in caught.value.problems if "no such object" in p.message] == ["model.vae_path"]
    monkeypatch.setattr("flowloom.storage.downloads.fetch.SPARE", 2**60)
    with pytest.raises(DiskFullError, match="MiB are free"):
        local_copy(models["vae_path"], storage)


def test_a_private_web_server_must_be_allowed(storage: StorageSection) -> None:
    with pytest.raises(SourceError, match=r"private|this machine|special"):
        local_copy("http://127.0.0.1:9/chroma.safetensors", storage)
