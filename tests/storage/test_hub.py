"""Uploads to a stand-in for the hub: retried, complete, and the token only where it belongs."""

import shutil
import time
from pathlib import Path

import pytest

from flowloom.errors import ConfigError
from flowloom.storage.hub_upload import Uploaded, Uploader
from tests.fakes.hub import TOKEN, Hub

# huggingface_hub hands its files to httpx2 in a way that this one deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes:DeprecationWarning")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoints" / "step_00000100"
    (folder / "state").mkdir(parents=True)
    (folder / "adapter.safetensors").write_bytes(b"weights" * 1000)
    (folder / "adapter_ema.safetensors").write_bytes(b"average" * 1000)
    (folder / "checkpoint.json").write_text('{"step": 100}')
    (folder / "state" / "optimizer.pt").write_bytes(b"moments" * 10000)
    return folder


def upload(tmp_path: Path, *folders: Path, wait: bool = True) -> list[Uploaded]:
    results: list[Uploaded] = []
    uploader = Uploader("me/model", tmp_path / "uploading", results.append, waits=(0.01, 0.01))
    for folder in folders:
        uploader.submit(folder)
    uploader.close(wait)
    return results


def test_a_checkpoint_arrives_whole_and_without_its_state(hub: Hub, checkpoint: Path, tmp_path: Path) -> None:
    (result,) = upload(tmp_path, checkpoint)
    assert result == Uploaded(100, url=f"{hub.url}/me/model/commit/1")
    assert hub.repos == {"me/model": "private"}
    assert hub.commits == ["Add step_00000100"]
    assert hub.files == {
        f"step_00000100/{name}": (checkpoint / name).read_bytes()
        for name in ("adapter.safetensors", "adapter_ema.safetensors", "checkpoint.json")
    }
    assert not list((tmp_path / "uploading").iterdir())


def test_the_token_goes_to_the_hub_in_the_authorization_header_only(
    hub: Hub, checkpoint: Path, tmp_path: Path
) -> None:
    upload(tmp_path, checkpoint)
    assert len(hub.requests) >= 6
    assert not [request for request in hub.requests if TOKEN in "".join(request)]
    assert not [
        path for path in tmp_path.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()
    ]


@pytest.mark.parametrize("status", [500, 0], ids=["answers 500", "drops the line"])
def test_a_hub_that_fails_first_is_asked_again(
    status: int, hub: Hub, checkpoint: Path, tmp_path: Path
) -> None:
    hub.failures = [("/api/repos/create", status), ("/api/repos/create", status)]
    (result,) = upload(tmp_path, checkpoint)
    assert result.error is None
    assert len(hub.files) == 3
    assert sum("/api/repos/create" in path for _, path, _ in hub.requests) == 3


@pytest.mark.slow
def test_an_upload_cut_in_the_middle_is_completed(hub: Hub, checkpoint: Path, tmp_path: Path) -> None:
    hub.failures = [("/store/", 400), ("/verify/", 0), ("/commit/", 500)]
    (result,) = upload(tmp_path, checkpoint)
    assert result.error is None
    assert len(hub.files) == 3
    assert hub.commits == ["Add step_00000100"]


def test_a_hub_that_stays_away_is_given_up_with_what_to_do(
    hub: Hub, checkpoint: Path, tmp_path: Path
) -> None:
    hub.failures = [("/api/repos/create", 500)] * 3
    (result,) = upload(tmp_path, checkpoint)
    assert result.url is None
    assert "step_00000100 was not uploaded to me/model" in (result.error or "")
    assert "hf upload me/model" in (result.error or "")
    assert not hub.failures


def test_a_refused_token_is_not_tried_again(hub: Hub, checkpoint: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_another")
    (result,) = upload(tmp_path, checkpoint)
    assert "HF_TOKEN" in (result.error or "")
    assert "hf_another" not in (result.error or "")
    assert len(hub.requests) == 1


def test_checkpoints_are_uploaded_in_order_even_after_they_were_deleted(
    hub: Hub, checkpoint: Path, tmp_path: Path
) -> None:
    second = checkpoint.with_name("step_00000200")
    shutil.copytree(checkpoint, second)
    results: list[Uploaded] = []
    uploader = Uploader("me/model", tmp_path / "uploading", results.append, waits=(0.01,))
    for folder in (checkpoint, second):
        uploader.submit(folder)
        shutil.rmtree(folder)  # as retention does
    uploader.close(wait=True)
    assert [(result.step, result.error) for result in results] == [(100, None), (200, None)]
    assert hub.commits == ["Add step_00000100", "Add step_00000200"]
    assert len(hub.files) == 6


def test_an_upload_cut_off_by_closing_is_completed_by_the_next_run(
    hub: Hub, checkpoint: Path, tmp_path: Path
) -> None:
    hub.failures = [("/api/repos/create", 500)]
    results: list[Uploaded] = []
    uploader = Uploader("me/model", tmp_path / "uploading", results.append, waits=(3600.0,))
    uploader.submit(checkpoint)
    deadline = time.monotonic() + 10
    while not hub.requests and time.monotonic() < deadline:
        time.sleep(0.01)
    uploader.close(wait=False)
    uploader._thread.join(5)
    assert not uploader._thread.is_alive()
    assert not results
    assert not hub.files

    shutil.rmtree(checkpoint)
    assert [result.error for result in upload(tmp_path)] == [None]
    assert len(hub.files) == 3


def test_a_missing_token_is_reported_before_the_run_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(ConfigError, match=r"hub\.repo_id: HF_TOKEN is not set"):
        Uploader("me/model", tmp_path, lambda result: None)
