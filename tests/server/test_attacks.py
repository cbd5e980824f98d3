"""Attacks by clients that may talk to the studio, and by pages of other sites in the same browser."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from PIL import Image

from flowloom.server.allowed_roots import AllowedRoots
from flowloom.server.endpoints import endpoint_problem
from flowloom.server.pages import Pages
from flowloom.server.routes.datasets_uploads import AT_ONCE, write_through
from tests.server.conftest import Studio, wait_for

TOKEN = "a-token-of-the-tests-own"


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    """A studio whose owner opened the folder above its home, too."""
    above = tmp_path_factory.mktemp("above")
    studio = Studio(above / "home", "--root", f"above={above}").start()
    (studio.home / "data").mkdir(exist_ok=True)
    yield studio
    studio.end()


@pytest.mark.parametrize("folder", ["runs", "runs/new", ".", ".."])
def test_no_run_is_written_through_a_dataset(studio: Studio, folder: str):
    path = studio.home / folder
    path.mkdir(parents=True, exist_ok=True)
    answer = studio.http.post("/api/datasets", json={"name": "trap", "path": str(path)})
    assert answer.status_code == 403
    (studio.home / "data" / "linked").unlink(missing_ok=True)
    (studio.home / "data" / "linked").symlink_to(path)
    assert studio.http.get("/api/datasets/linked").status_code == 404
    assert "linked" not in {one["name"] for one in studio.get("/api/datasets")}


@pytest.mark.parametrize(
    ("folder", "save_as"),
    [("runs", "x/run.json"), ("runs/x", "run.json"), (".", "runs/x/studio/queue.json"), ("..", "run.json")],
)
def test_no_run_is_downloaded_into_the_runs_folder(studio: Studio, folder: str, save_as: str):
    item = {"url": "https://example.org/run.json", "save_as": save_as}
    body = {"config": {"target_dir": str(studio.home / folder), "items": [item]}}
    answer = studio.http.post("/api/tasks/download/start", json=body)
    assert answer.status_code == 422
    assert [problem["where"] for problem in answer.json()["errors"]] == ["/config/target_dir"]


@pytest.mark.parametrize("path", ["x://../../outside", "data/x://../../../outside", "http://../../outside"])
def test_no_mark_of_an_address_within_a_path_leads_out(tmp_path: Path, path: str):
    (tmp_path / "home" / "data" / "x:").mkdir(parents=True)
    roots = AllowedRoots({"data": tmp_path / "home" / "data"})
    text = str(tmp_path / "home" / "data") + f"/{path}"
    elsewhere = {"dataloader": {"image_folder_path": "s3://bucket/images"}}
    assert not list(roots.path_problems(elsewhere)), "what begins with the mark is an address, and no path"
    config = {"dataloader": {"image_folder_path": text}}
    assert [problem.where for problem in roots.path_problems(config)] == ["dataloader.image_folder_path"]


@pytest.mark.parametrize(
    "word", ["preset=/etc/passwd", "preset=../x.toml", "x_dir=/etc", "x=~root/x", "x=~no-one/x"]
)
def test_no_argument_of_an_adapter_names_a_file_elsewhere(studio: Studio, word: str):
    config = {"network": {"network_args": ["conv_dim=4", "preset=full", word]}}
    for path in ("config", "config/preview", "preflight", "train/start"):
        answer = studio.http.post(f"/api/kohya/{path}", json={"config": config}).json()
        places = answer["problems"] if "problems" in answer else answer["errors"]
        assert [problem["where"] for problem in places] == ["/config/network/network_args/2"]
        expected = "unknown user's home" if "~no-one" in word else "outside the studio's folders"
        assert expected in places[0]["detail"]
    assert studio.get("/api/runs")["runs"] == []


@pytest.mark.parametrize("name", ["x:", "https:", "s3:"])
def test_no_mark_of_an_address_within_a_path_leads_into_runs(studio: Studio, name: str):
    (studio.home / "data" / name).mkdir(exist_ok=True)
    path = f"{studio.home}/data/{name}//../../runs"
    item = {"url": "https://example.org/run.json", "save_as": "run.json"}
    build = {"source_path": str(studio.home / "data"), "out_path": f"{path}/x/events.jsonl"}
    for task, config in (("download", {"target_dir": path, "items": [item]}), ("dataset-build", build)):
        answer = studio.http.post(f"/api/tasks/{task}/start", json={"config": config})
        assert answer.status_code == 422
        (pointer,) = [problem["where"] for problem in answer.json()["errors"]]
        assert pointer in ("/config/target_dir", "/config/out_path")


@pytest.mark.parametrize("to", ["export", "merge", "dataset-export"])
def test_no_task_writes_into_a_run_of_another(studio: Studio, to: str):
    run = studio.home / "runs" / "other"
    run.mkdir(parents=True, exist_ok=True)
    (run / "run.json").write_text('{"config": {}}')
    out = run / ("weights.safetensors" if to != "dataset-export" else "made")
    source = {"jsonl_path": str(studio.home / "data" / "x.jsonl")}
    (studio.home / "data" / "x.jsonl").touch()
    config = source if to == "dataset-export" else {"source_path": str(run)}
    body = {"config": config | {"out_path": str(out)}}
    problems = studio.post(f"/api/tasks/{to}/config", body, 200)["problems"]
    assert "/config/out_path" in [problem["where"] for problem in problems]


def test_only_checkpoints_are_deleted_by_a_run_that_saves_into_a_folder_of_the_users(studio: Studio):
    models, run = studio.home / "models", studio.home / "runs" / "saver"
    for folder in (models / "base", run / "checkpoints" / "sample", run / "checkpoints" / "step_00000001"):
        folder.mkdir(parents=True, exist_ok=True)
    (models / "base" / "x.safetensors").write_text("somebody else's")
    (models / "notes.txt").write_text("somebody else's")
    run_json = {"config": {}, "folders": {"checkpoints": {str(models): 4e9}}}
    (run / "run.json").write_text(json.dumps(run_json))
    for name, status in (("base", 404), ("notes.txt", 404), ("sample", 404), ("step_00000001", 204)):
        answer = studio.http.delete(f"/api/runs/saver/checkpoints/{name}")
        assert answer.status_code == status, (name, answer.text)
    assert (models / "base" / "x.safetensors").exists()


def test_a_run_from_elsewhere_shows_nothing_outside_of_the_roots(
    studio_at: Callable[..., Studio], tmp_path: Path
):
    studio = studio_at().start()
    secret = tmp_path / "private"
    secret.mkdir()
    Image.new("RGB", (8, 8)).save(secret / "1.png")
    run = studio.home / "runs" / "brought"
    run.mkdir(parents=True)
    (run / "samples").symlink_to(secret)
    folders = {"samples": {f"{run}/../../../private": 0.0}, "checkpoints": {f"{run}/../../../private": 0.0}}
    (run / "run.json").write_text(json.dumps({"config": {}, "folders": folders}))
    assert studio.get("/api/runs/brought/samples")["samples"] == []
    assert studio.http.get("/api/runs/brought/samples/1.png").status_code in (403, 404)
    assert studio.http.get("/api/runs/brought/checkpoints/1.png").status_code in (403, 404)


@pytest.mark.parametrize(
    "endpoint",
    ["http://127.0.0.1:9", "http://localhost:9", "http://169.254.169.254", "http://[::1]:9", "http://10.1.2.3",
     "http://[::ffff:127.0.0.1]:9", "http://0x7f000001", "http://2130706433"],
)  # fmt: skip
def test_no_request_makes_the_studio_talk_to_its_own_network(studio: Studio, endpoint: str):
    storage = {"endpoint": endpoint, "anonymous": True}
    verdict = studio.post("/api/stores/test", {"url": "s3://bucket/fox", "storage": storage}, 200)
    assert (verdict["ok"], verdict["problem"]) == (False, "denied")
    assert "FLOWLOOM_PRIVATE_HOSTS" in verdict["detail"]
    verdict = studio.post("/api/flow/config", {"config": {"storage": storage}}, 200)
    assert [problem["where"] for problem in verdict["problems"]] == ["/config/storage/endpoint"]
    name = "".join(letter for letter in endpoint if letter.isalnum())
    studio.post("/api/datasets", {"name": name, "url": "s3://bucket/fox", "storage": storage}, 201)
    url = f"/api/datasets/{name}/images"
    wait_for(lambda: "FLOWLOOM_PRIVATE_HOSTS" in studio.get(url)["scan"]["error"])


@pytest.mark.parametrize("host", ["127.0.0.1:9", "[::1]:9", "169.254.169.254", "localhost:53800", "10.1.2.3"])
def test_no_tracker_leads_into_the_studio_s_own_network(studio: Studio, host: str):
    config = {"loggers": [{"kind": "aim", "repo": f"aim://{host}"}]}
    verdict = studio.post("/api/flow/config", {"config": config}, 200)
    (problem,) = [item for item in verdict["problems"] if "loggers" in item["where"]]
    assert "FLOWLOOM_PRIVATE_HOSTS" in problem["detail"]


def test_a_store_that_the_owner_named_may_be_private():
    assert endpoint_problem("http://127.0.0.1:9000", {})
    assert not endpoint_problem("http://127.0.0.1:9000", {"FLOWLOOM_PRIVATE_HOSTS": "127.0.0.0/8"})
    assert not endpoint_problem("http://127.0.0.1:9000", {"AWS_ENDPOINT_URL": "http://127.0.0.1:9000"})
    assert endpoint_problem("http://127.0.0.2:9000", {"AWS_ENDPOINT_URL": "http://127.0.0.1:9000"})


@pytest.mark.parametrize("mode", ["no-cors", "cors", "websocket"])
def test_no_page_of_another_site_has_the_studio_in_it(studio: Studio, mode: str):
    headers = {"sec-fetch-site": "cross-site", "sec-fetch-mode": mode}
    assert studio.http.get("/api/runs", headers=headers).status_code == 403
    headers = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    assert studio.http.get("/api/runs", headers=headers).status_code == 200


@pytest.mark.parametrize("name", ["x.svg", "x.html", "x.xhtml", "x.js", "x.txt", "x.png"])
def test_no_file_of_others_runs_as_ours(studio: Studio, name: str):
    folder = studio.home / "data" / "active"
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>")
    answer = studio.http.get("/api/roots/data/file", params={"path": f"active/{name}"})
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-disposition"].startswith("attachment")
    for place in (answer, studio.http.get(f"/api/datasets/active/images/{name}")):
        assert place.headers["x-content-type-options"] == "nosniff"
        assert "sandbox" in place.headers["content-security-policy"]
        assert "default-src 'none'" in place.headers["content-security-policy"]
        assert "svg" not in place.headers["content-type"]
        assert "html" not in place.headers["content-type"]


def test_the_token_stays_out_of_the_log_and_of_other_processes(
    studio_at: Callable[..., Studio], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("FLOWLOOM_TOKEN", TOKEN)
    studio = studio_at().start()
    assert studio.process
    studio.http.headers["authorization"] = f"Bearer {TOKEN}"
    folder = studio.home / "data" / "fox"
    folder.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(folder / "1.png")
    assert studio.http.get("/api/datasets/fox/images/1.png?size=128").status_code == 200
    (child,) = psutil.Process(studio.process.pid).children()
    assert "FLOWLOOM_TOKEN" not in child.environ()
    assert TOKEN not in (studio.home / "server.log").read_text()


def test_a_search_is_no_pattern(studio: Studio):
    folder = studio.home / "data" / "search"
    folder.mkdir()
    Image.new("RGB", (8, 8)).save(folder / "1.png")
    (folder / "1.txt").write_text("a" * 100_000 + " (a+)+$ %_")
    for text, found in (("(a+)+$", 1), ("%_", 1), ("a_", 0), ("b%", 0), ("' OR 1=1 --", 0), ("*", 0)):
        assert studio.get("/api/datasets/search/images", text=text)["total"] == found


class _Stuck:
    """A request that brings one part, and then nothing more."""

    async def stream(self) -> AsyncIterator[bytes]:
        yield bytes(AT_ONCE)
        await asyncio.Event().wait()


def test_ending_an_upload_waits_for_its_writer():
    asyncio.run(_end_an_upload())


async def _end_an_upload() -> None:
    began, may_end, order = threading.Event(), threading.Event(), list[str]()

    def write(chunk: bytes) -> None:
        began.set()
        assert may_end.wait(60)
        order.append(f"{len(chunk)} bytes")

    async def receive() -> None:
        request: Any = _Stuck()
        async with asyncio.timeout(60) as deadline:
            try:
                await write_through(write, request, deadline)
            finally:
                order.append("closed")

    receiving = asyncio.create_task(receive())
    assert await asyncio.to_thread(began.wait, 60)
    receiving.cancel()
    await asyncio.sleep(0.05)
    assert order == []
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await receiving
    assert order == [f"{AT_ONCE} bytes", "0 bytes", "closed"]


def test_a_page_is_not_forwarded_to_another_host(tmp_path: Path):
    (tmp_path / "runs").mkdir()
    for page in (tmp_path / "index.html", tmp_path / "runs" / "index.html", tmp_path / "404.html"):
        page.write_text("<!doctype html>")

    async def get_page() -> httpx.Response:
        transport = httpx.ASGITransport(Pages(folder=tmp_path))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await client.get("http://127.0.0.1//runs")

    assert asyncio.run(get_page()).headers["location"] == "/runs/"
