"""A dataset in one request, from an address or the hub: complete or absent, after any kill or content."""

from __future__ import annotations

import io
import json
import os
import random
import signal
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from flowloom.errors import RunError
from flowloom.run.directory import RunDir
from flowloom.tasks.dataset_import import _is_placed, _place
from tests.fakes.files import Files
from tests.fakes.hub import TOKEN
from tests.server.conftest import Studio, wait_for

COMMIT = "0123456789abcdef0123456789abcdef01234567"
HELD = 3_000_000
MIB = 2**20


@pytest.fixture
def studio(studio_at: Callable[..., Studio], files: Files, monkeypatch: pytest.MonkeyPatch) -> Studio:
    """One whose hub is the stand-in at `files`, and that may ask it."""
    monkeypatch.setenv("FLOWLOOM_PRIVATE_HOSTS", "127.0.0.1")
    monkeypatch.setenv("HF_ENDPOINT", files.url)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return studio_at().start()


def image_bytes(seed: int, side: int = 64) -> bytes:
    image = Image.frombytes("RGB", (side, side), random.Random(seed).randbytes(3 * side * side))
    held = io.BytesIO()
    image.save(held, "PNG")
    return held.getvalue()


def zipped(contents: dict[str, bytes]) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return held.getvalue()


def less_than_nothing() -> tarfile.TarInfo:
    """An entry that takes from the sum of sizes what others add."""
    entry = tarfile.TarInfo("x.png")
    entry.pax_headers = {"GNU.sparse.realsize": str(-(10**15))}
    return entry


def tarred(
    contents: dict[str, bytes], *others: tarfile.TarInfo, first: tarfile.TarInfo | None = None
) -> bytes:
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w:gz", format=tarfile.PAX_FORMAT) as archive:
        if first:
            archive.addfile(first)
        for name, content in contents.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
        for entry in others:
            archive.addfile(entry)
    return held.getvalue()


def start(studio: Studio, **body: Any) -> str:
    return studio.post("/api/datasets/import", {"name": "fox", **body}, 201)["id"]


def names(studio: Studio) -> list[str]:
    return [found["name"] for found in studio.get("/api/datasets")]


def result(studio: Studio, run_id: str) -> Any:
    return json.loads((studio.home / "runs" / run_id / "result.json").read_text())


def test_an_import_of_a_zip_that_is_killed_halfway_continues_and_appears_complete(
    studio: Studio, files: Files
):
    contents = {f"köpfe/{i}.png": image_bytes(i, 600) for i in range(4)}
    contents |= {f"köpfe/{i}.txt": b"a fox" for i in range(4)}
    files.contents["/sets/fox.zip"] = zipped(contents | {"run.sh": b"rm -rf /", "model.pkl": b"x"})
    files.holds_after = HELD
    run_id = start(studio, url=f"{files.url}/sets/fox.zip?download=1")
    part = studio.home / "runs" / run_id / "incoming" / "files" / "fox.zip.part"
    wait_for(lambda: part.exists() and part.stat().st_size >= MIB)
    os.kill(studio.run(run_id)["pid"], signal.SIGKILL)
    studio.wait(run_id, "interrupted")
    assert names(studio) == []
    files.may_continue.set()
    studio.post(f"/api/runs/{run_id}/resume", {})
    studio.wait(run_id, "finished")
    assert files.ranges()[-1] == f"bytes={2 * MIB}-", "what was here is not asked for again"
    assert names(studio) == ["fox"]
    page = studio.get("/api/datasets/fox/images")
    assert sorted((one["item"], one["caption"]) for one in page["images"]) == [
        (f"köpfe/{i}.png", "a fox") for i in range(4)
    ]
    outcome = result(studio, run_id)
    assert (outcome["num_images"], outcome["num_files"], outcome["num_left_out"]) == (4, 8, 2)
    assert {one["name"] for one in outcome["left_out"]} == {"run.sh", "model.pkl"}
    assert not part.parent.parent.exists(), "nothing is kept twice"


def test_of_a_tar_only_plain_files_below_the_folder_are_extracted(studio: Studio, files: Files):
    odd = ("a.png", "b.png", "c.png", "../d.png")
    link, hard, device, leads_out = map(tarfile.TarInfo, odd)
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    hard.type, hard.linkname = tarfile.LNKTYPE, "fox.png"
    device.type = tarfile.CHRTYPE
    # No suffix in the address: the content decides.
    files.contents["/download"] = tarred(
        {"fox.png": image_bytes(1), "fox.txt": b"red"}, link, hard, device, leads_out
    )
    run_id = start(studio, url=f"{files.url}/download")
    studio.wait(run_id, "finished")
    folder = studio.home / "data" / "fox"
    assert sorted(path.name for path in folder.rglob("*")) == ["fox.png", "fox.txt"]
    assert not (studio.home / "data" / "d.png").exists()
    reasons = {one["name"]: one["reason"] for one in result(studio, run_id)["left_out"]}
    assert set(reasons) == set(odd)
    assert "link" in reasons["a.png"]
    assert "regular file" in reasons["c.png"]


def test_a_table_becomes_a_jsonl(studio: Studio, files: Files):
    held = io.BytesIO()
    rows = {
        "image": [{"bytes": image_bytes(i), "path": f"{i}.png"} for i in range(3)],
        "text": [f"fox {i}" for i in range(3)],
    }
    pq.write_table(pa.table(rows), held)
    files.contents["/table"] = held.getvalue()
    studio.wait(start(studio, url=f"{files.url}/table"), "finished")
    assert set(names(studio)) == {"fox", "fox.jsonl"}
    page = studio.get("/api/datasets/fox.jsonl/images")
    assert sorted(one["caption"] for one in page["images"]) == ["fox 0", "fox 1", "fox 2"]
    lines = b"".join(
        json.dumps({"file_name": f"{i}.png", "text": f"listed {i}"}).encode() + b"\n" for i in range(2)
    )
    files.contents["/listed.zip"] = zipped(
        {"metadata.jsonl": lines, "0.png": image_bytes(0), "1.png": image_bytes(1)}
    )
    studio.wait(start(studio, name="listed", url=f"{files.url}/listed.zip"), "finished")
    page = studio.get("/api/datasets/listed.jsonl/images")
    assert sorted(one["caption"] for one in page["images"]) == ["listed 0", "listed 1"]


def test_a_repository_of_the_hub_is_imported_at_the_revision_of_the_start(studio: Studio, files: Files):
    tree = f"/api/datasets/me/fox/tree/{COMMIT}"
    contents = {
        "train/1.png": image_bytes(1),
        "train/1.txt": b"one",
        "train/more.zip": zipped({"2.png": image_bytes(2)}),
    }
    pages = [[*contents][:2], [*contents][2:], ["README.md", "load.py", "test/3.png", "train/x.part.json"]]
    for i, page in enumerate(pages):
        path = tree if i == 0 else f"/page{i}"
        entries = [{"type": "file", "path": name, "size": len(contents.get(name, b""))} for name in page]
        files.contents[path] = json.dumps(entries).encode()
        if i + 1 < len(pages):
            files.next[path] = f"/page{i + 1}"
    files.contents["/api/datasets/me/fox/revision/main"] = json.dumps({"sha": COMMIT}).encode()
    for name, content in contents.items():
        files.contents[f"/datasets/me/fox/resolve/{COMMIT}/{name}"] = content
    studio.wait(start(studio, repo="me/fox", below="train"), "finished")
    folder = studio.home / "data" / "fox"
    assert sorted(path.name for path in folder.iterdir()) == ["1.png", "1.txt", "2.png"]
    assert all(headers["authorization"] == f"Bearer {TOKEN}" for _, headers in files.requests)
    run_id = start(studio, name="none", repo="me/none")
    assert "404" in studio.wait(run_id, "failed")["error"]["message"]
    files.contents["/api/datasets/me/fox/revision/main"] = b"[]"
    run_id = start(studio, name="odd", repo="me/fox")
    assert "HF_ENDPOINT" in studio.wait(run_id, "failed")["error"]["message"]


def test_files_that_appear_there_meanwhile_are_not_taken_for_ours(studio: Studio, files: Files):
    files.contents["/fox.zip"] = zipped({f"{i}.png": image_bytes(i, 600) for i in range(4)})
    files.holds_after = HELD
    run_id = start(studio, url=f"{files.url}/fox.zip")
    part = studio.home / "runs" / run_id / "incoming" / "files" / "fox.zip.part"
    wait_for(lambda: part.exists() and part.stat().st_size >= MIB)
    theirs = studio.home / "data" / "fox"
    theirs.mkdir(parents=True)
    files.may_continue.set()
    for _ in range(2):
        assert "by now" in studio.wait(run_id, "failed")["error"]["message"]
        assert list(theirs.iterdir()) == []
        last = studio.run(run_id)["last_seq"]
        studio.post(f"/api/runs/{run_id}/resume", {})
        wait_for(lambda last=last: studio.run(run_id)["last_seq"] > last)
    studio.wait(run_id, "failed")
    theirs.rename(theirs.with_name("theirs"))
    studio.post(f"/api/runs/{run_id}/resume", {})
    studio.wait(run_id, "finished")
    assert len(list(theirs.glob("*.png"))) == 4


def test_a_dataset_is_imported_to_another_disk(tmp_path: Path):
    with tempfile.TemporaryDirectory(dir="/dev/shm") as other:
        target = Path(other) / "fox"
        if tmp_path.stat().st_dev == Path(other).stat().st_dev:
            pytest.skip("there is no other disk")
        run_dir, made = RunDir(tmp_path / "run"), tmp_path / "run" / "incoming" / "set"
        made.mkdir(parents=True)
        (made / "a.png").write_bytes(image_bytes(1))
        target.mkdir()
        (target / "theirs.png").touch()
        with pytest.raises(RunError, match="by now"):
            _place(made, target, run_dir)
        assert not _is_placed(run_dir, target)
        assert [path.name for path in Path(other).iterdir()] == ["fox"]
        target.rename(target.with_name("theirs"))
        _place(made, target, run_dir)
        assert _is_placed(run_dir, target)
        assert [path.name for path in target.iterdir()] == ["a.png"]


@pytest.mark.parametrize("name", ["bomb", "minus", "broken", "page", "empty", "sum"])
def test_a_file_that_is_no_dataset_creates_none(studio: Studio, files: Files, name: str):
    whole = zipped({f"{i}.png": image_bytes(i) for i in range(3)})
    contents, words = {
        "minus": (tarred({"0.png": bytes(80 * 2**20)}, first=less_than_nothing()), "damaged"),
        "bomb": (tarred({"0.png": bytes(80 * 2**20)}), "bomb"),
        "broken": (tarred({"0.png": image_bytes(0, 300)})[:-2000], "damaged"),
        "page": (b"<html>", "web page"),
        "empty": (zipped({"notes.txt": b"x", "run.py": b"x"}), "no image"),
        "sum": (whole, "SHA-256"),
    }[name]
    files.contents["/fox.tar.gz"] = contents
    if name == "page":
        files.kind = "text/html; charset=utf-8"
    body = {"sha256": "0" * 64} if name == "sum" else {}
    run_id = start(studio, url=f"{files.url}/fox.tar.gz", **body)
    assert words in studio.wait(run_id, "failed")["error"]["message"]
    assert names(studio) == []
    assert not (studio.home / "data").exists() or not any((studio.home / "data").iterdir())


def test_names_and_addresses_that_cannot_be_are_refused_at_once(studio: Studio, files: Files):
    url = f"{files.url}/fox.zip"
    studio.post("/api/datasets", {"name": "taken"}, 201)
    files.contents["/fox.zip"] = zipped({"1.png": image_bytes(1)})
    files.holds_after = 10
    start(studio, url=url)
    for body, status in (
        ({"name": "taken", "url": url}, 409),
        ({"name": "fox", "url": url}, 409),
        ({"name": "../x", "url": url}, 422),
        ({"name": "x.jsonl", "url": url}, 422),
        ({"name": "x"}, 422),
        ({"name": "x", "url": url, "repo": "me/fox"}, 422),
        ({"name": "x", "url": "file:///etc/passwd"}, 422),
        ({"name": "x", "url": f"{url}?token=abc"}, 422),
        ({"name": "x", "repo": "me/fox", "below": "../../secret"}, 422),
        ({"name": "x", "repo": "../fox"}, 422),
    ):
        answer = studio.http.post("/api/datasets/import", json=body)
        assert answer.status_code == status, (body, answer.text)
    files.may_continue.set()


def test_private_addresses_are_refused_by_default(
    studio_at: Callable[..., Studio], files: Files, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("FLOWLOOM_PRIVATE_HOSTS", raising=False)
    closed = studio_at("closed").start()
    run = closed.wait(start(closed, url=f"{files.url}/fox.zip"), "failed")
    assert "FLOWLOOM_PRIVATE_HOSTS" in run["error"]["message"]
    assert files.requests == []
