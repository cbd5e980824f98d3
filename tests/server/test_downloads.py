"""Downloads as runs of the studio: resumed after a stop and a kill, and never from a private network."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.files import Files
from tests.fakes.hub import TOKEN
from tests.server.conftest import Studio, wait_for

CONTENT = random.Random(1).randbytes(4_000_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
HELD = 3_000_000


@pytest.fixture
def hub_studio(studio_at: Callable[..., Studio], files: Files, monkeypatch: pytest.MonkeyPatch) -> Studio:
    """A studio whose hub is the stand-in at `files`."""
    monkeypatch.setenv("HF_ENDPOINT", files.url)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return studio_at().start()


@pytest.fixture
def on_hub(files: Files, elsewhere: Files) -> dict[str, Any]:
    """A model on the hub, whose content is on another server; the item that downloads it."""
    path = "/me/model/resolve/main/x.safetensors"
    files.moved[path], files.linked[path] = f"{elsewhere.url}/lies/here", CONTENT
    elsewhere.contents["/lies/here"] = CONTENT
    return {"repo": "me/model", "name": "x.safetensors", "save_as": "chroma/x.bin"}


def start(studio: Studio, *items: dict[str, Any], **more: Any) -> str:
    config = {"target_dir": str(studio.home / "models"), "items": list(items), **more}
    return studio.post("/api/tasks/download/start", {"config": config})["id"]


def test_a_hub_file_comes_as_a_run_and_is_known(hub_studio: Studio, on_hub: dict[str, Any], files: Files):
    run_id = start(hub_studio, on_hub)
    run = hub_studio.wait(run_id)
    assert (run["state"], run["step"], run["max_steps"]) == ("finished", len(CONTENT), len(CONTENT))
    assert run["devices"] == [], "it waits for no device"
    target = hub_studio.home / "models" / "chroma" / "x.bin"
    assert target.read_bytes() == CONTENT
    (file,) = hub_studio.get(f"/api/runs/{run_id}/result")["files"]
    assert (file["path"], file["sha256"], file["size"]) == (str(target), SHA256, len(CONTENT))
    (listed,) = hub_studio.get("/api/models", root="models")["models"]
    assert listed["sha256"] == SHA256
    assert files.requests[0][1]["authorization"] == f"Bearer {TOKEN}"
    written = [path for path in (hub_studio.home / "runs").rglob("*") if path.is_file()]
    assert not [path for path in written if TOKEN.encode() in path.read_bytes()]


def test_a_download_killed_in_the_middle_continues_where_it_was(
    hub_studio: Studio, on_hub: dict[str, Any], elsewhere: Files
):
    elsewhere.holds_after = HELD
    run_id = start(hub_studio, on_hub)
    part = hub_studio.home / "models" / "chroma" / "x.bin.part"
    wait_for(lambda: part.exists() and part.stat().st_size >= 2 * 2**20)
    os.killpg(hub_studio.run(run_id)["pid"], signal.SIGKILL)
    assert hub_studio.wait(run_id)["state"] == "interrupted"
    have = part.stat().st_size
    elsewhere.may_continue.set()
    hub_studio.post(f"/api/runs/{run_id}/resume", {})
    assert hub_studio.wait(run_id)["state"] == "finished"
    assert part.with_suffix("").read_bytes() == CONTENT
    assert elsewhere.ranges() == ["bytes=0-0", None, "bytes=0-0", f"bytes={have}-"]


def test_a_stopped_download_can_be_resumed(hub_studio: Studio, on_hub: dict[str, Any], elsewhere: Files):
    elsewhere.holds_after = HELD
    run_id = start(hub_studio, on_hub)
    part = hub_studio.home / "models" / "chroma" / "x.bin.part"
    wait_for(lambda: part.exists() and part.stat().st_size >= 2 * 2**20)
    hub_studio.post(f"/api/runs/{run_id}/stop")
    elsewhere.may_continue.set()
    assert hub_studio.wait(run_id)["state"] == "stopped"
    hub_studio.post(f"/api/runs/{run_id}/resume", {})
    assert hub_studio.wait(run_id)["state"] == "finished"
    assert part.with_suffix("").read_bytes() == CONTENT
    assert elsewhere.ranges()[-1] == f"bytes={3 * 2**20}-"


def test_several_files_are_one_run_and_complete_ones_are_not_downloaded_again(
    hub_studio: Studio, on_hub: dict[str, Any], files: Files
):
    files.contents |= {"/me/model/resolve/main/config.json": b"{}", "/wrong.bin": CONTENT[::-1]}
    config = {"repo": "me/model", "name": "config.json", "save_as": "t5/config.json"}
    wrong = {"url": f"{files.url}/wrong.bin", "sha256": SHA256}
    run_id = start(hub_studio, config, on_hub, wrong)
    run = hub_studio.wait(run_id)
    assert run["state"] == "failed"
    assert "instead of" in run["error"]["message"]
    assert run["max_steps"] == 2 * len(CONTENT) + 2, "the sizes of all of them"
    files.contents["/wrong.bin"] = CONTENT
    before = len(files.requests)
    hub_studio.post(f"/api/runs/{run_id}/resume", {})
    assert hub_studio.wait(run_id)["state"] == "finished"
    assert {path for path, _ in files.requests[before:]} == {"/wrong.bin"}
    assert len(hub_studio.get(f"/api/runs/{run_id}/result")["files"]) == 3


def test_missing_files_are_reported_before_any_download(
    hub_studio: Studio, on_hub: dict[str, Any], files: Files, elsewhere: Files
):
    run = hub_studio.wait(start(hub_studio, on_hub, {"url": f"{files.url}/none.bin"}))
    assert run["state"] == "failed"
    assert "404" in run["error"]["message"]
    assert elsewhere.ranges() == ["bytes=0-0"]


def test_too_little_disk_space_is_reported_before_any_download(
    hub_studio: Studio, on_hub: dict[str, Any], files: Files, elsewhere: Files
):
    files.contents["/huge.bin"], files.claims, files.has_ranges = b"x", 2**60, False
    run = hub_studio.wait(start(hub_studio, on_hub, {"url": f"{files.url}/huge.bin"}))
    assert run["error"]["error"] == "DiskFullError"
    assert "Free some disk space" in run["error"]["message"]
    assert elsewhere.ranges() == ["bytes=0-0"]


def test_existing_files_are_neither_fetched_again_nor_overwritten(
    hub_studio: Studio, on_hub: dict[str, Any], elsewhere: Files
):
    target = hub_studio.home / "models" / "chroma" / "x.bin"
    target.parent.mkdir(parents=True)
    target.write_bytes(CONTENT)
    assert hub_studio.wait(start(hub_studio, on_hub))["state"] == "finished"
    assert elsewhere.ranges() == ["bytes=0-0"], "asked what it is, and not fetched"
    target.write_bytes(b"mine")
    run = hub_studio.wait(start(hub_studio, on_hub))
    assert run["state"] == "failed"
    assert "different file has this name" in run["error"]["message"]
    assert target.read_bytes() == b"mine"
    assert hub_studio.wait(start(hub_studio, on_hub, overwrite=True))["state"] == "finished"
    assert target.read_bytes() == CONTENT


def test_a_private_address_is_refused_unless_the_operator_allowed_it(
    studio_at: Callable[..., Studio], files: Files, monkeypatch: pytest.MonkeyPatch
):
    files.contents["/x.bin"] = CONTENT
    monkeypatch.delenv("FLOWLOOM_PRIVATE_HOSTS", raising=False)
    studio = studio_at("closed").start()
    item = {"url": f"{files.url}/x.bin", "sha256": SHA256}
    run = studio.wait(start(studio, item))
    assert run["state"] == "failed"
    assert "FLOWLOOM_PRIVATE_HOSTS" in run["error"]["message"]
    assert files.requests == []
    monkeypatch.setenv("FLOWLOOM_PRIVATE_HOSTS", "127.0.0.1")
    opened = studio_at("open").start()
    assert opened.wait(start(opened, item))["state"] == "finished"


def test_a_link_that_leads_out_is_not_written_through(
    hub_studio: Studio, on_hub: dict[str, Any], tmp_path: Path
):
    (tmp_path / "outside").mkdir()
    (hub_studio.home / "models").mkdir(exist_ok=True)
    (hub_studio.home / "models" / "chroma").symlink_to(tmp_path / "outside")
    run = hub_studio.wait(start(hub_studio, on_hub))
    assert "leads out" in run["error"]["message"]
    assert list((tmp_path / "outside").iterdir()) == []


def test_a_repository_is_listed_to_choose_from(hub_studio: Studio, files: Files):
    entries = [
        {"type": "directory", "path": "vae"},
        {"type": "file", "path": "README.md", "size": 900, "oid": "1" * 40},
        {
            "type": "file",
            "path": "x.safetensors",
            "size": 4_000_000,
            "lfs": {"oid": SHA256, "size": 4_000_000},
        },
    ]
    files.contents["/api/models/me/model/tree/main"] = json.dumps(entries).encode()
    found = hub_studio.get("/api/hub/me/model")
    assert found["files"] == [
        {"name": "README.md", "size": 900, "sha256": None},
        {"name": "x.safetensors", "size": 4_000_000, "sha256": SHA256},
    ]
    assert files.requests[-1][1]["authorization"] == f"Bearer {TOKEN}"
    answers = {"/api/hub/me/none": 404, "/api/hub/me/model?revision=a/b": 404, "/api/hub/me/..": 404}
    for path, status in answers.items():
        assert hub_studio.http.get(path).status_code == status
    files.states = [403]
    assert hub_studio.http.get("/api/hub/me/model").status_code == 403
    files.contents["/api/models/me/model/tree/main"] = b"<html>"
    assert hub_studio.http.get("/api/hub/me/model").status_code == 502


HUB_ITEM = {"repo": "me/model", "name": "x.safetensors"}
WRONG = {
    "nothing": ({}, "set repo and name, or url"),
    "both": (HUB_ITEM | {"url": "https://example.org/x"}, "set repo and name, or url"),
    "no name": ({"repo": "me/model"}, "set repo and name, or url"),
    "out of the repository": ({"repo": "me/model", "name": "../../x"}, "stay inside"),
    "up": (HUB_ITEM | {"save_as": "../x"}, "not a file name below"),
    "absolute": (HUB_ITEM | {"save_as": "/etc/passwd"}, "not a file name below"),
    "hidden": (HUB_ITEM | {"save_as": ".flowloom/x"}, "not a file name below"),
    "a folder": ({"url": "https://example.org/"}, "not a file name below"),
    "part": (HUB_ITEM | {"save_as": "x.part"}, "not a file name below"),
    "a program": ({"url": "https://example.org/setup.py"}, "cannot be downloaded"),
    "no ending": (HUB_ITEM | {"save_as": "authorized_keys"}, "cannot be downloaded"),
    "file": ({"url": "file:///etc/passwd"}, "not a URL"),
    "password": ({"url": "https://me:secret@example.org/x"}, "name and password"),
    "secret": ({"url": "https://example.org/x?token=abc"}, "secret"),
    "sum": (HUB_ITEM | {"sha256": "abc"}, "pattern"),
}


@pytest.mark.parametrize("fault", WRONG)
def test_invalid_downloads_are_reported_before_the_start(one_studio: Studio, fault: str):
    item, message = WRONG[fault]
    config = {"target_dir": str(one_studio.home / "models"), "items": [item]}
    verdict = one_studio.post("/api/tasks/download/config", {"config": config})
    assert not verdict["is_valid"]
    assert any(message in problem["detail"] for problem in verdict["problems"]), verdict
    assert all(problem["where"].startswith("/config/items/0") for problem in verdict["problems"])


def test_downloads_stay_in_the_studio_s_folders(one_studio: Studio, tmp_path: Path):
    config = {"target_dir": str(tmp_path / "outside"), "items": [HUB_ITEM]}
    (problem,) = one_studio.post("/api/tasks/download/config", {"config": config})["problems"]
    assert problem["where"] == "/config/target_dir"


def test_a_run_s_own_folder_is_not_written_to(one_studio: Studio):
    folder = one_studio.home / "runs" / "mine"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text('{"config": {}}')
    config = {"target_dir": str(folder / "samples"), "items": [HUB_ITEM]}
    (problem,) = one_studio.post("/api/tasks/download/config", {"config": config})["problems"]
    assert "overlaps the runs folder" in problem["detail"]


def test_two_items_of_one_name_are_reported(one_studio: Studio):
    config = {"target_dir": str(one_studio.home / "models"), "items": [HUB_ITEM, HUB_ITEM]}
    (problem,) = one_studio.post("/api/tasks/download/config", {"config": config})["problems"]
    assert "saved twice" in problem["detail"]
