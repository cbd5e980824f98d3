"""With a real object store: up, listed, read by headers, and down again, the same images all the way."""

from __future__ import annotations

import logging
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import orjson
import pytest

from flowloom.cli.main import main
from tests.datasets.build.images import built, greys, image_bytes, serving, write

stand_in: Any = pytest.importorskip("tests.fakes.seaweed")


seaweed = stand_in.seaweed


@pytest.fixture
def bucket(seaweed: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of a bucket that the environment opens."""
    for name, value in seaweed.environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", seaweed.endpoint)
    return f"s3://{seaweed.bucket}"


@pytest.mark.slow
def test_a_dataset_is_uploaded_listed_and_downloaded(
    tmp_path: Path,
    bucket: str,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    seaweed: Any,
) -> None:
    caplog.set_level(logging.DEBUG)
    for number, name in enumerate(["a.png", "ordner/Bär & #1 100%.png", "ordner/c+d e.png", "x.jpg"]):
        padded = image_bytes(number * 50, (30 + number, 20), Path(name).suffix) + bytes(100_000)
        write(tmp_path / "in" / name, padded)
        write((tmp_path / "in" / name).with_suffix(".txt"), f"caption {number}")
    rows, _ = built(tmp_path / "in", tmp_path / "d.jsonl")
    expected = greys(rows, tmp_path / "in")
    up = ["dataset", "upload", str(tmp_path / "d.jsonl"), f"{bucket}/set", "-o", str(tmp_path / "up.jsonl")]
    assert main(up) == 0
    assert "4 sent" in capsys.readouterr().out
    assert main(up) == 0
    assert "0 sent (0.0 MiB" in capsys.readouterr().out

    for path in (tmp_path / "in").rglob("*.txt"):
        seaweed_name = path.relative_to(tmp_path / "in").as_posix()
        store(bucket).write(seaweed_name, path)
    listed, report = built(f"{bucket}/set", tmp_path / "listed.jsonl")
    assert not report.unusable
    uploaded = [orjson.loads(line) for line in (tmp_path / "up.jsonl").read_bytes().splitlines()]
    key = "filename"
    assert sorted(listed, key=lambda row: row[key]) == sorted(uploaded, key=lambda row: row[key])

    assert (
        main(["dataset", "export", str(tmp_path / "up.jsonl"), "--to", "kohya", "-o", str(tmp_path / "k")])
        == 0
    )
    back, report = built(tmp_path / "k", tmp_path / "back.jsonl")
    assert greys(back, report.root) == expected
    assert seaweed.secret not in caplog.text + "".join(capsys.readouterr())
    for path in tmp_path.glob("*.jsonl*"):
        assert seaweed.secret.encode() not in path.read_bytes()


def store(bucket: str) -> Any:
    from flowloom.datasets.build.stores import open_store

    return open_store(f"{bucket}/set")


@pytest.mark.slow
def test_a_store_that_denies_access_is_one_line(
    tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-s3cr3t")
    assert main(["dataset", "build", f"{bucket}/set", "-o", str(tmp_path / "d.jsonl")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "wrong-s3cr3t" not in error


def test_a_web_server_is_listed_and_its_images_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, name in enumerate(["a b/ü & #1 100%.png", "top.jpg"]):
        write(tmp_path / "web/set" / name, image_bytes(number * 60, (20 + number, 10), Path(name).suffix))
        write((tmp_path / "web/set" / name).with_suffix(".txt"), f"caption {number}")
    write(tmp_path / "web/other/no.png", image_bytes(9))
    with serving(tmp_path / "web") as server:
        rows, report = built(f"{server}/set/", tmp_path / "d.jsonl")
        assert not report.unusable
        assert all(row["filename"].startswith(f"{server}/set/") for row in rows)
        sizeless = [{k: v for k, v in row.items() if k not in ("width", "height")} for row in rows]
        write(tmp_path / "sizeless.jsonl", b"\n".join(orjson.dumps(row) for row in sizeless))
        out = str(tmp_path / "w")
        export = ["dataset", "export", str(tmp_path / "d.jsonl"), "--to", "webdataset", "-o", out]
        # The user named the server; the rows of a file may come from another person.
        assert main(export) == 2
        assert "set FLOWLOOM_PRIVATE_HOSTS=127.0.0.1" in capsys.readouterr().err
        monkeypatch.setenv("FLOWLOOM_PRIVATE_HOSTS", "127.0.0.1")
        again, _ = built(tmp_path / "sizeless.jsonl", tmp_path / "again.jsonl")
        assert again == rows
        assert main(export) == 0
    back, report = built(tmp_path / "w", tmp_path / "back.jsonl")
    assert greys(back, report.root) == {0: ["caption 0"], 60: ["caption 1"]}


@pytest.mark.slow
def test_an_uploaded_dataset_is_built_again_from_the_bucket_alone(
    tmp_path: Path, bucket: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, name in enumerate(["a.png", "ordner/Bär & #1 100%.png", "2_x/c.png"]):
        write(tmp_path / "in" / name, image_bytes(number))
        write((tmp_path / "in" / name).with_suffix(".txt"), f"fox, snow, {number}")
    rows, _ = built(tmp_path / "in", tmp_path / "d.jsonl", kind="folder")
    rows[0] |= {"caption_or_tags": ["one", "two"], "loss_weight": 0.5}
    rows.append(rows[1])
    write(tmp_path / "d.jsonl", b"\n".join(map(orjson.dumps, rows)))
    public = "https://cdn.test/sets/fox"
    for target, more in (("round", []), ("public", ["--public-url", public])):
        up = ["dataset", "upload", str(tmp_path / "d.jsonl"), f"{bucket}/{target}", "--images"]
        assert main([*up, str(tmp_path / "in"), "-o", str(tmp_path / f"{target}.jsonl"), *more]) == 0
        back, report = built(f"{bucket}/{target}", tmp_path / f"{target}-back.jsonl")
        assert not report.unusable
        there = f"{bucket}/{target}/"
        expected = [row | {"filename": there + row["filename"], "is_url_based": True} for row in rows]
        assert sorted(map(str, back)) == sorted(map(str, expected))


def test_the_page_of_a_folder_is_requested_with_its_slash(tmp_path: Path) -> None:
    """A server that has a file for the name without a slash, as some have, and redirects nothing."""

    class Strict(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/set":
                self.send_error(404)
            else:
                super().do_GET()

        def log_message(self, format: str, *args: object) -> None:
            """Nothing."""

    write(tmp_path / "web/set/den/a.png", image_bytes(1))
    write(tmp_path / "web/set/den/a.txt", "x")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Strict, directory=str(tmp_path / "web"))) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        try:
            rows, _ = built(f"http://127.0.0.1:{http.server_port}/set/", tmp_path / "d.jsonl")
        finally:
            http.shutdown()
            thread.join()
    assert [row["caption_or_tags"] for row in rows] == ["x"]
