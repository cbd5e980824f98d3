"""The library's work on datasets by HTTP: lint, conversion there and back, buckets."""

from __future__ import annotations

import json
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from flowloom.run.directory import RunDir
from flowloom.tasks import ALL
from tests.fakes.seaweed import Seaweed
from tests.server.conftest import Studio, wait_for


def make_images(folder: Path, count: int = 4) -> Path:
    """Images with captions of tags, the last one without."""
    (folder / "den").mkdir(parents=True)
    for number in range(count):
        path = folder / ("den" if number % 2 else ".") / f"{number} é.png"
        Image.linear_gradient("L").rotate(40 * number).resize((64 + 8 * number, 64)).save(path)
        if number < count - 1:
            path.with_suffix(".txt").write_text(f"fox, snow, number {number}")
    return folder


@pytest.fixture
def fox(one_studio: Studio, request: pytest.FixtureRequest) -> str:
    """The path of a new dataset."""
    name = request.node.name[:80]
    make_images(one_studio.home / "data" / name)
    return f"/api/datasets/{name}"


def test_a_folder_is_linted_at_once(one_studio: Studio, fox: str):
    folder = one_studio.home / "data" / fox.rpartition("/")[2]
    (folder / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"x" * 100)
    (folder / "bad.txt").write_text("a, b, c")
    answer = one_studio.post(f"{fox}/lint", {"near_bits": -1}, 200)
    assert answer["run"] is None
    report = answer["result"]
    assert report["num_usable"] == 4
    assert report["counts"]["empty_caption"] == 1
    assert [entry["where"] for entry in report["unusable"]] == ["bad.png"]
    assert (report["num_rows"], report["counts"]["unreadable"], report["errors"]) == (5, 1, 1)
    (unreadable,) = (one for one in report["findings"] if one["kind"] == "unreadable")
    assert (unreadable["filename"], "not readable" in unreadable["message"]) == ("bad.png", True)
    assert not list((one_studio.home / ".flowloom" / "answers").iterdir())


def test_a_folder_of_unclear_form_raises_a_question(one_studio: Studio, fox: str):
    folder = one_studio.home / "data" / f"{fox.rpartition('/')[2]} numbered"
    for name in ("1_front", "2_back"):
        make_images(folder / name, 2)
    place = f"{fox} numbered"
    for verb in ("convert", "lint"):
        refused = one_studio.http.post(f"{place}/{verb}", json={})
        assert refused.status_code == 422, refused.text
        (error,) = refused.json()["errors"]
        assert error["where"].endswith("/form")
        assert ("kohya" in error["detail"], "folder" in error["detail"]) == (True, True)
    rows = {
        form: one_studio.post(f"{place}/convert", {"form": form, "replace": True}, 200)["result"]["num_rows"]
        for form in ("folder", "kohya")
    }
    assert rows == {"folder": 2, "kohya": 3}


def test_a_large_set_is_linted_by_a_run(one_studio: Studio, fox: str):
    answer = one_studio.http.post(f"{fox}/lint", json={"as_run": True})
    assert answer.status_code == 202
    run = one_studio.wait(answer.json()["run"]["id"], "finished")
    report = json.loads((one_studio.home / "runs" / run["id"] / "result.json").read_text())
    assert report["num_decoded"] == 4


def test_a_folder_becomes_a_jsonl_and_kohyas_folders(one_studio: Studio, fox: str):
    name = fox.rpartition("/")[2]
    done = one_studio.post(f"{fox}/convert", {"default_caption": "a fox"}, 200)["result"]
    assert (done["num_rows"], done["num_unusable"]) == (4, 0)
    rows = one_studio.get(f"{fox}.jsonl/images")["images"]
    assert {row["file"] for row in rows} == {"0 é.png", "2 é.png", "den/1 é.png", "den/3 é.png"}
    assert one_studio.http.get(rows[0]["url"], params={"size": 128}).status_code == 200
    assert one_studio.http.post(f"{fox}/convert", json={}).status_code == 409
    assert one_studio.post(f"{fox}/convert", {"replace": True}, 200)["result"]["num_rows"] == 3
    kohya = {"name": f"{name} kohya", "to": "kohya", "concept": "fox"}
    assert one_studio.post(f"{fox}.jsonl/export", kohya, 200)["result"]["num_rows"] == 3
    shown = {one["item"]: one["caption"] for one in one_studio.get(f"{fox} kohya/images")["images"]}
    assert shown["1_fox/0 é.png"] == "fox, snow, number 0"
    assert one_studio.http.post(f"{fox}.jsonl/export", json=kohya).status_code == 409
    assert one_studio.http.post(f"{fox}/export", json={"name": "x"}).status_code == 409


@pytest.mark.parametrize("name", ["../x", "a/b", ".x", "x\0"])
def test_nothing_is_written_outside_of_the_data_folder(one_studio: Studio, name: str):
    one_studio.http.post("/api/datasets", json={"name": "plain"})
    assert one_studio.http.post("/api/datasets/plain/convert", json={"name": name}).status_code == 422
    (one_studio.home / "data" / "one.jsonl").touch()
    body = {"name": name, "to": "kohya"}
    assert one_studio.http.post("/api/datasets/one.jsonl/export", json=body).status_code == 422


def test_a_task_that_fails_returns_its_reason(one_studio: Studio):
    one_studio.http.post("/api/datasets", json={"name": "empty"})
    answer = one_studio.http.post("/api/datasets/empty/convert", json={})
    assert answer.status_code == 409
    assert "no image with a caption" in answer.json()["detail"]


def test_a_build_that_was_stopped_continues(tmp_path: Path):
    folder = make_images(tmp_path / "fox", 6)
    task, run_dir = ALL["dataset-build"], RunDir.create("build", tmp_path)
    config = {"source_path": str(folder), "out_path": str(tmp_path / "fox.jsonl")}
    task.prepare(config, run_dir, "a test")
    run_dir.request("stop")
    for _ in range(2):
        subprocess.run(task.command(run_dir, resume=False).argv, check=True, cwd=tmp_path)
    kinds = [json.loads(line)["kind"] for line in run_dir.events_jsonl.read_text().splitlines()]
    assert kinds[-1] == "finished"
    assert json.loads((run_dir.path / "result.json").read_text())["num_rows"] == 5


def test_an_export_leaves_other_files_in_its_place_unchanged(tmp_path: Path):
    folder = make_images(tmp_path / "fox")
    rows = tmp_path / "fox.jsonl"
    build = {"source_path": str(folder), "out_path": str(rows)}
    task, out = ALL["dataset-export"], tmp_path / "out"
    for name, one, config in (
        ("build", ALL["dataset-build"], build),
        ("export", task, {"jsonl_path": str(rows), "out_path": str(out)}),
    ):
        run_dir = RunDir.create(name, tmp_path)
        assert one.check(config) == []
        one.prepare(config, run_dir, "a test")
        if name == "export":
            out.mkdir()
            (out / "mine.png").write_text("mine")
        for _ in range(2):  # a failed run is resumed by one click
            done = subprocess.run(one.command(run_dir, resume=True).argv, check=False, capture_output=True)
            assert (done.returncode == 0) == (name == "build")
    assert [path.name for path in out.iterdir()] == ["mine.png"]
    (out / "mine.png").unlink()
    subprocess.run(task.command(run_dir, resume=True).argv, check=True)
    assert len(list(out.rglob("*.png"))) == 3


class _Elsewhere(BaseHTTPRequestHandler):
    """A store whose buckets are in another region."""

    def do_HEAD(self) -> None:
        self.send_response(301)
        self.send_header("x-amz-bucket-region", "eu-central-1")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def elsewhere() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Elsewhere)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def with_store(tmp_path_factory: pytest.TempPathFactory, seaweed: Seaweed) -> Iterator[Studio]:
    """A studio with a store's keys among its secrets."""
    home = tmp_path_factory.mktemp("store") / "home"
    secrets = home.parent / "secrets.json"
    secrets.write_text(json.dumps(seaweed.environ))
    secrets.chmod(0o600)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLOWLOOM_SECRETS", str(secrets))
        patch.setenv("FLOWLOOM_PRIVATE_HOSTS", "127.0.0.1")
        patch.delenv("AWS_ACCESS_KEY_ID", raising=False)
        studio = Studio(home).start()
        yield studio
        studio.end()


def verdict_on(studio: Studio, url: str, **storage: Any) -> dict[str, Any]:
    return studio.post("/api/stores/test", {"url": url, "storage": storage}, 200)


@pytest.mark.slow
def test_each_failure_to_reach_a_bucket_has_its_own_verdict(with_store: Studio, seaweed: Seaweed):
    assert verdict_on(with_store, f"s3://{seaweed.bucket}", endpoint=seaweed.endpoint)["ok"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}"
    with elsewhere() as other:
        words = {
            "dns": verdict_on(with_store, "s3://loom", endpoint="http://no-such-host.invalid"),
            "refused": verdict_on(with_store, "s3://loom", endpoint=nobody),
            "tls": verdict_on(with_store, "s3://loom", endpoint=seaweed.endpoint.replace("http:", "https:")),
            "no-bucket": verdict_on(with_store, "s3://no-such-bucket", endpoint=seaweed.endpoint),
            "region": verdict_on(with_store, "s3://loom", endpoint=other, region="us-west-2"),
            "denied": verdict_on(with_store, "s3://loom", endpoint=seaweed.endpoint, anonymous=True),
        }
    assert {word: verdict["problem"] for word, verdict in words.items()} == {word: word for word in words}
    assert all(verdict["hint"] for verdict in words.values())
    assert "eu-central-1" in words["region"]["hint"]
    assert seaweed.secret not in json.dumps(words)
    wrong = with_store.http.put("/api/secrets/AWS_SECRET_ACCESS_KEY", json={"value": "a-wrong-secret-key"})
    assert wrong.status_code == 204
    verdict = verdict_on(with_store, f"s3://{seaweed.bucket}", endpoint=seaweed.endpoint)
    assert verdict["problem"] == "denied"
    assert "a-wrong-secret-key" not in json.dumps(verdict)
    with_store.http.put("/api/secrets/AWS_SECRET_ACCESS_KEY", json={"value": seaweed.secret})


def assert_captions_are_edited(studio: Studio, place: str, store: Any) -> None:
    """One caption, then many; each change only over what was read, and undone to the last byte."""
    before = {info.name: store.read(info.name) for info in store.list() if not info.name.endswith(".png")}
    missing = studio.http.put(f"{place}/captions/x", json={"caption": "x"}, headers={"if-match": "*"})
    assert missing.status_code == 404
    old = studio.get(f"{place}/captions/den/3 é.png")
    assert old["caption"] == ""
    headers = {"if-match": f'"{old["version"]}"'}
    written = studio.http.put(f"{place}/captions/den/3 é.png", json={"caption": "cubs"}, headers=headers)
    assert written.status_code == 200
    assert store.read("den/3 é.txt") == b"cubs\n"
    again = studio.http.put(f"{place}/captions/den/3 é.png", json={"caption": "no"}, headers=headers)
    assert again.status_code == 412
    edit = studio.post(f"{place}/edits", {"operation": {"kind": "add", "tags": ["new"]}}, 201)
    assert edit["num_changed"] == 4
    assert store.read("den/3 é.txt") == b"cubs, new\n"
    shown = {one["item"]: one["caption"] for one in studio.get(f"{place}/images")["images"]}
    assert shown["den/3 é.png"] == "cubs, new"
    # Another program's change is neither overwritten nor undone.
    store.write("0 é.txt", b"theirs")
    refused = studio.http.post(f"{place}/edits/{edit['id']}/undo", json={})
    assert [problem["where"] for problem in refused.json()["errors"]] == ["/0 é.png"]
    undone = studio.post(f"{place}/edits/{edit['id']}/undo", {"is_partial": True}, 200)
    assert undone["changed_meanwhile"] == ["0 é.png"]
    now = {name: store.read(name) for name in before}
    assert now == before | {"0 é.txt": b"theirs"}
    store.delete("den/3 é.txt")
    store.write("0 é.txt", before["0 é.txt"])
    studio.post(f"{place}/edits/preview", {"operation": {"kind": "add", "tags": ["new"]}}, 200)  # scans


@pytest.mark.slow
def test_a_bucket_is_browsed_and_becomes_a_jsonl(
    with_store: Studio, storage: Any, seaweed: Seaweed, tmp_path: Path
):
    from flowloom.storage.open import open_source

    url = f"s3://{seaweed.bucket}/fox set"
    store = open_source(url, storage)
    folder = make_images(tmp_path / "fox")
    for path in folder.rglob("*.*"):
        store.write(path.relative_to(folder).as_posix(), path)
    body = {"name": "far", "url": url, "storage": {"endpoint": seaweed.endpoint}}
    with_store.post("/api/datasets", body, 201)
    place = "/api/datasets/far"
    wait_for(lambda: with_store.get(f"{place}/images")["total"] == 4)
    shown = with_store.get(f"{place}/images", tags="snow")["images"]
    assert [one["item"] for one in shown] == ["0 é.png", "2 é.png", "den/1 é.png"]
    small = with_store.http.get(shown[0]["url"], params={"size": 128})
    assert small.headers["content-type"] == "image/webp"
    assert with_store.http.get(shown[0]["url"]).status_code == 409
    assert_captions_are_edited(with_store, place, store)
    done = with_store.post(f"{place}/convert", {"as_run": False}, 200)["result"]
    assert done["num_rows"] == 3
    rows = with_store.get("/api/datasets/far.jsonl/images")["images"]
    assert rows[0]["file"] == f"{url}/0 é.png"
    missing = {"name": "gone", "url": "s3://no-such-bucket", "storage": {"endpoint": seaweed.endpoint}}
    with_store.post("/api/datasets", missing, 201)
    wait_for(lambda: "bucket" in with_store.get("/api/datasets/gone/images")["scan"]["error"])


@pytest.mark.slow
def test_a_bucket_shows_the_captions_of_the_jsonl_that_was_uploaded_with_it(
    with_store: Studio, storage: Any, seaweed: Seaweed, tmp_path: Path
):
    from flowloom.datasets.build.build import build
    from flowloom.datasets.build.options import BuildOptions
    from flowloom.datasets.build.upload import Uploader
    from flowloom.storage.open import open_source

    folder = make_images(tmp_path / "fox")
    build(str(folder), tmp_path / "fox.jsonl", BuildOptions(default_caption="a fox"), lambda _: None)
    url = f"s3://{seaweed.bucket}/uploaded"
    uploader = Uploader(tmp_path / "fox.jsonl", url, open_source(url, storage))
    uploader.upload(tmp_path / "fox.remote.jsonl", "", lambda _: None)
    with_store.post(
        "/api/datasets", {"name": "uploaded", "url": url, "storage": {"endpoint": seaweed.endpoint}}, 201
    )
    place = "/api/datasets/uploaded"
    wait_for(lambda: with_store.get(f"{place}/images")["total"] == 4)
    shown = {one["item"]: one for one in with_store.get(f"{place}/images")["images"]}
    assert {item: one["caption"] for item, one in shown.items()} == {
        "0 é.png": "fox, snow, number 0",
        "2 é.png": "fox, snow, number 2",
        "den/1 é.png": "fox, snow, number 1",
        "den/3 é.png": "a fox",
    }
    assert (shown["den/1 é.png"]["width"], shown["den/1 é.png"]["height"]) == (72, 64)
    refused = with_store.http.put(
        f"{place}/captions/0 é.png", json={"caption": "x"}, headers={"if-match": "*"}
    )
    assert refused.status_code == 409
    assert "is in a JSONL of the bucket" in refused.json()["detail"]
