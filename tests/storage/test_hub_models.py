"""Models are downloaded from the hub completely and once, and continue where they were cut off."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from flowloom.errors import Denied, NotFound, Unavailable
from flowloom.storage.hub_models import fetch_model
from tests.fakes.hub_models import COMMIT, ModelHub, model_hub  # noqa: F401 -- a fixture

REPO = "someone/tagger"
FILES = {
    "model.onnx": bytes(range(256)) * 4096,
    "selected_tags.csv": b"name\n",
    "evil.py": b"boo",
    "x/model.onnx": b"x",
}
PATTERNS = ["model.onnx*", "selected_tags.csv"]


@pytest.fixture
def hub(model_hub: ModelHub) -> ModelHub:  # noqa: F811
    model_hub.repos[REPO] = FILES
    return model_hub


def gets(hub: ModelHub) -> list[tuple[str, str]]:
    return [(path.rpartition("/")[2], given) for method, path, given in hub.requests
            if method == "GET" and "/resolve/" in path]  # fmt: skip


def test_only_the_named_files_come_and_the_commit_is_known(hub: ModelHub, tmp_path: Path):
    folder, commit = fetch_model(REPO, None, PATTERNS, tmp_path)
    assert commit == COMMIT
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*")} == {
        "model.onnx",
        "selected_tags.csv",
    }
    assert (folder / "model.onnx").read_bytes() == FILES["model.onnx"]
    assert fetch_model(REPO, "main", PATTERNS, tmp_path) == (folder, commit)
    assert len(gets(hub)) == 2, "the second time all was there"


def test_a_download_that_was_cut_off_continues(
    hub: ModelHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 2**16)
    hub.breaks_after = 300_000
    folder, _ = fetch_model(REPO, None, PATTERNS, tmp_path)
    assert (folder / "model.onnx").read_bytes() == FILES["model.onnx"]
    ranges = [int(given.removeprefix("bytes=").removesuffix("-")) for name, given in gets(hub) if given]
    assert ranges
    assert all(start > 0 for start in ranges), "not from its beginning"


def test_without_a_network_local_files_are_used(
    hub: ModelHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    there = fetch_model(REPO, None, PATTERNS, tmp_path)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert fetch_model(REPO, None, PATTERNS, tmp_path) == there
    with pytest.raises(Unavailable, match="model_path"):
        fetch_model("someone/other", None, PATTERNS, tmp_path)


def test_refusals_of_the_hub_become_errors_with_a_hint(hub: ModelHub, tmp_path: Path):
    hub.gated.add("someone/gated")
    with pytest.raises(Denied, match="accept its terms"):
        fetch_model("someone/gated", None, PATTERNS, tmp_path)
    with pytest.raises(NotFound, match="no such model"):
        fetch_model("someone/nothing", None, PATTERNS, tmp_path)
    with pytest.raises(NotFound, match="at v9"):
        fetch_model(REPO, "v9", PATTERNS, tmp_path)
    with pytest.raises(NotFound, match=r"no file matches other\.bin"):
        fetch_model(REPO, None, ["other.bin"], tmp_path)


@pytest.mark.parametrize("host", ["127.0.0.2", "[::ffff:127.0.0.2]"])
def test_a_hub_does_not_send_us_to_this_machine(hub: ModelHub, tmp_path: Path, host: str):
    seen: list[str] = []
    with socket.create_server(("127.0.0.2", 0)) as inner:
        inner.settimeout(0.5)
        hub.moved_to = f"http://{host}:{inner.getsockname()[1]}"
        with pytest.raises(Denied, match="FLOWLOOM_PRIVATE_HOSTS"):
            fetch_model(REPO, None, PATTERNS, tmp_path)
        with pytest.raises(TimeoutError):
            seen.append(str(inner.accept()))
    assert seen == []
