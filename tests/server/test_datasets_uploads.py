"""Uploads that are cut off and continue, and malicious archives."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import signal
import socket
import stat
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
import pytest
from PIL import Image

from tests.server.conftest import Studio, wait_for

TUS = {"tus-resumable": "1.0.0"}
PART = TUS | {"content-type": "application/offset+octet-stream"}


@pytest.fixture
def uploads(one_studio: Studio, request: pytest.FixtureRequest) -> str:
    """Where to upload to: a new dataset."""
    name = request.node.name[:80].replace("/", "-").replace("\\", "-").replace("\0", "-").strip()
    one_studio.post("/api/datasets", {"name": name}, 201)
    return f"/api/datasets/{name}/uploads"


def folder_of(studio: Studio, uploads: str) -> Path:
    return studio.home / "data" / uploads.split("/")[3]


def metadata(**values: str) -> str:
    pairs = (f"{key} {base64.b64encode(value.encode()).decode()}" for key, value in values.items())
    return ",".join(pair.strip() for pair in pairs)


def begin(studio: Studio, uploads: str, length: int, **values: str) -> httpx.Response:
    headers = TUS | {"upload-length": str(length), "upload-metadata": metadata(**values)}
    return studio.http.post(uploads, headers=headers)


def send(studio: Studio, uploads: str, content: bytes, **values: str) -> Any:
    """Upload `content` in one request; the upload afterwards."""
    headers = PART | {"upload-length": str(len(content)), "upload-metadata": metadata(**values)}
    answer = studio.http.post(uploads, headers=headers, content=content)
    assert answer.status_code == 201, answer.text
    assert answer.headers["upload-offset"] == str(len(content))
    return studio.get(answer.headers["location"])


def unpacked(studio: Studio, uploads: str, content: bytes, **values: str) -> dict[str, Any]:
    """The result of unpacking the zip `content`."""
    upload = send(studio, uploads, content, **({"filename": "a.zip"} | values))
    url = f"{uploads}/{upload['id']}"
    return wait_for(lambda: (state := studio.get(url)["unpacking"])["state"] != "unpacking" and state)


def zipped(files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return content.getvalue()


def image_bytes(colour: str = "red") -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(content, "png")
    return content.getvalue()


def test_a_file_arrives_in_its_folder_by_its_unicode_name(one_studio: Studio, uploads: str):
    send(one_studio, uploads, image_bytes(), filename="x.png", relativePath="den é/狐 1.png")
    folder = folder_of(one_studio, uploads)
    assert (folder / "den é" / "狐 1.png").read_bytes() == image_bytes()
    assert not list((folder / ".uploads").iterdir())
    assert one_studio.get(uploads.replace("uploads", "images"))["total"] == 1


def test_the_protocol_lists_its_capabilities(one_studio: Studio, uploads: str):
    headers = one_studio.http.options(uploads).headers
    assert "creation" in headers["tus-extension"]
    assert "checksum" in headers["tus-extension"]
    answer = one_studio.http.post(uploads, headers={"upload-length": "1", "upload-metadata": ""})
    assert answer.status_code == 412
    assert begin(one_studio, uploads, 2**60, filename="a.png").status_code in (413, 422)


def test_an_upload_continues_where_it_was_cut_off(one_studio: Studio, uploads: str):
    content = os.urandom(3 * 2**20)
    place = begin(one_studio, uploads, len(content), filename="big.png").headers["location"]
    url = urlsplit(one_studio.url)
    half = len(content) // 2
    with socket.create_connection((url.hostname, url.port)) as connection:
        head = f"PATCH {place} HTTP/1.1\r\nHost: 127.0.0.1\r\nTus-Resumable: 1.0.0\r\nUpload-Offset: 0\r\n"
        head += f"Content-Type: {PART['content-type']}\r\nContent-Length: {len(content)}\r\n\r\n"
        connection.sendall(head.encode() + content[:half])
    offset = wait_for(lambda: int(one_studio.http.head(place, headers=TUS).headers["upload-offset"]), 10)
    assert 0 < offset <= half
    wrong = one_studio.http.patch(place, headers=PART | {"upload-offset": "1"}, content=b"x")
    assert wrong.status_code == 409
    rest = PART | {"upload-offset": str(offset)}
    answer = one_studio.http.patch(place, headers=rest, content=content[offset:])
    assert answer.status_code == 204, answer.text
    assert (folder_of(one_studio, uploads) / "big.png").read_bytes() == content
    over = one_studio.http.head(place, headers=TUS)
    assert over.headers["upload-offset"] == over.headers["upload-length"] == str(len(content))


def test_an_upload_outlives_the_studio(studio_at: Callable[..., Studio]):
    studio = studio_at().start()
    studio.post("/api/datasets", {"name": "fox"}, 201)
    content = os.urandom(100_000)
    url = begin(studio, "/api/datasets/fox/uploads", len(content), filename="a.png").headers["location"]
    part = content[:60_000]
    assert studio.http.patch(url, headers=PART | {"upload-offset": "0"}, content=part).status_code == 204
    studio.end(signal.SIGKILL)
    studio.start()
    assert studio.http.head(url, headers=TUS).headers["upload-offset"] == "60000"
    studio.http.patch(url, headers=PART | {"upload-offset": "60000"}, content=content[60_000:])
    assert (studio.home / "data" / "fox" / "a.png").read_bytes() == content


def test_a_part_with_a_wrong_checksum_is_not_kept(one_studio: Studio, uploads: str):
    url = begin(one_studio, uploads, 10, filename="a.txt").headers["location"]
    for algorithm in ("sha1", "sha256", "md5"):
        value = base64.b64encode(hashlib.new(algorithm, b"other").digest()).decode()
        headers = PART | {"upload-offset": "0", "upload-checksum": f"{algorithm} {value}"}
        assert one_studio.http.patch(url, headers=headers, content=b"12345").status_code == 460
    assert one_studio.http.head(url, headers=TUS).headers["upload-offset"] == "0"
    value = base64.b64encode(hashlib.sha256(b"12345").digest()).decode()
    headers = PART | {"upload-offset": "0", "upload-checksum": f"sha256 {value}"}
    assert one_studio.http.patch(url, headers=headers, content=b"12345").headers["upload-offset"] == "5"
    assert (
        one_studio.http.patch(
            url, headers=headers | {"upload-offset": "5", "upload-checksum": "crc 1"}, content=b""
        ).status_code
        == 422
    )


def test_an_upload_that_was_ended_leaves_nothing(one_studio: Studio, uploads: str):
    url = begin(one_studio, uploads, 10, filename="a.txt").headers["location"]
    assert one_studio.http.delete(url, headers=TUS).status_code == 204
    assert one_studio.http.head(url, headers=TUS).status_code == 404
    assert not list((folder_of(one_studio, uploads) / ".uploads").iterdir())


def test_an_abandoned_upload_expires(one_studio: Studio, uploads: str):
    answer = begin(one_studio, uploads, 10, filename="a.txt")
    assert answer.headers["upload-expires"].endswith("GMT")
    data = (
        folder_of(one_studio, uploads) / ".uploads" / answer.headers["location"].rpartition("/")[2] / "data"
    )
    os.utime(data, (1, 1))
    begin(one_studio, uploads, 10, filename="b.txt")
    assert one_studio.http.head(answer.headers["location"], headers=TUS).status_code == 404


def test_existing_files_are_replaced_only_on_request(one_studio: Studio, uploads: str):
    send(one_studio, uploads, b"one", filename="a.txt")
    assert begin(one_studio, uploads, 3, filename="a.txt").status_code == 409
    send(one_studio, uploads, b"two", filename="a.txt", conflict="replace")
    assert (folder_of(one_studio, uploads) / "a.txt").read_bytes() == b"two"


@pytest.mark.parametrize(
    "name",
    ["../a.png", "/a.png", "a/../../b.png", "..\\a.png", "C:\\a.png", "a\0.png", ".a.png", ".uploads/a.png",
     "run.sh", "a.py", "", "x" * 300 + ".png", "a\n.png"],
)  # fmt: skip
def test_no_upload_leads_out_or_is_a_program(one_studio: Studio, uploads: str, name: str):
    answer = begin(one_studio, uploads, 1, relativePath=name)
    assert answer.status_code == 422, answer.text
    assert not list(folder_of(one_studio, uploads).iterdir())


def test_more_than_was_announced_is_refused(one_studio: Studio, uploads: str):
    url = begin(one_studio, uploads, 4, filename="a.txt").headers["location"]
    answer = one_studio.http.patch(url, headers=PART | {"upload-offset": "0"}, content=b"12345")
    assert answer.status_code == 413
    assert one_studio.http.head(url, headers=TUS).headers["upload-offset"] == "0"


def test_a_link_in_the_dataset_leads_no_upload_out(one_studio: Studio, uploads: str, tmp_path: Path):
    (folder_of(one_studio, uploads) / "out").symlink_to(tmp_path)
    headers = PART | {"upload-length": "3", "upload-metadata": metadata(relativePath="out/a.txt")}
    assert one_studio.http.post(uploads, headers=headers, content=b"abc").status_code == 403
    state = unpacked(one_studio, uploads, zipped({"out/b.txt": b"b", "in/c.txt": b"c"}))
    assert (state["num_files"], state["num_left_out"]) == (1, 1)
    assert not list(tmp_path.iterdir())


def test_a_zip_brings_captions_and_folders(one_studio: Studio, uploads: str):
    files = {"fox/1.png": image_bytes(), "fox/1.txt": b"a fox", "fox/den/é 狐.png": image_bytes("blue")}
    state = unpacked(one_studio, uploads, zipped(files))
    assert (state["state"], state["num_files"], state["num_images"], state["num_left_out"]) == (
        "done",
        3,
        2,
        0,
    )
    folder = folder_of(one_studio, uploads)
    assert {name: (folder / name).read_bytes() for name in files} == files
    again = unpacked(one_studio, uploads, zipped(files | {"fox/1.txt": b"another"}))
    assert again["left_out"] == [["fox/1.txt", "another file of this name exists"]]
    assert (folder / "fox/1.txt").read_bytes() == b"a fox"
    wait_for(lambda: not list((folder / ".uploads").glob("*/data")))


def test_no_process_that_unpacked_becomes_a_zombie(one_studio: Studio, uploads: str):
    unpacked(one_studio, uploads, zipped({"a.txt": b"a"}))
    assert one_studio.process
    studio = psutil.Process(one_studio.process.pid)

    def is_left(process: psutil.Process) -> bool:
        try:
            return process.status() == psutil.STATUS_ZOMBIE or "unpack" in " ".join(process.cmdline())
        except psutil.NoSuchProcess:
            return False

    wait_for(lambda: not any(map(is_left, studio.children())), 10)


def test_entries_that_would_leave_the_dataset_are_skipped(one_studio: Studio, uploads: str):
    content = io.BytesIO()
    names = [
        "../out.txt",
        "/out.txt",
        "a/../../out.txt",
        "..\\out.txt",
        "C:/out.txt",
        "x.sh",
        "__MACOSX/._a.png",
    ]
    with zipfile.ZipFile(content, "w") as archive:
        for name in names:
            archive.writestr(name, b"out")
        link = zipfile.ZipInfo("link.txt")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
        archive.writestr("inner.zip", zipped({"a.txt": b"a"}))
        archive.writestr("good.txt", b"good")
    state = unpacked(one_studio, uploads, content.getvalue())
    assert (state["num_files"], state["num_left_out"]) == (1, len(names) + 2)
    folder = folder_of(one_studio, uploads)
    assert [path.name for path in folder.iterdir() if path.name != ".uploads"] == ["good.txt"]
    assert not list(folder.parent.glob("out*"))


def test_a_bomb_is_refused_before_it_goes_off(one_studio: Studio, uploads: str):
    state = unpacked(one_studio, uploads, zipped({f"{i}.txt": bytes(40 * 2**20) for i in range(3)}))
    assert state["state"] == "refused"
    assert "bomb" in state["error"]
    assert not [path for path in folder_of(one_studio, uploads).iterdir() if path.name != ".uploads"]


def test_an_entry_with_a_false_size_brings_no_more_than_it_states(one_studio: Studio, uploads: str):
    """Sizes in the list of names are made smaller than what is really there."""
    content = bytearray(zipped({"a.txt": bytes(30 * 2**20)}))
    place = content.index(b"PK\x01\x02") + 24
    content[place : place + 4] = struct.pack("<I", 1000)
    state = unpacked(one_studio, uploads, bytes(content))
    assert state["state"] == "refused"
    assert "damaged" in state["error"]


@pytest.mark.parametrize("damage", ["cut", "noise", "empty", "encrypted"])
def test_a_damaged_zip_is_refused_with_a_reason(one_studio: Studio, uploads: str, damage: str):
    content = bytearray(zipped({"a.png": os.urandom(5000), "b.txt": b"b"}, zipfile.ZIP_STORED))
    if damage == "cut":
        del content[3000:]
    elif damage == "noise":
        content[1000:1100] = os.urandom(100)
    elif damage == "empty":
        content = bytearray()
    else:
        place = content.index(b"PK\x01\x02")
        content[place + 8] |= 1
    state = unpacked(one_studio, uploads, bytes(content))
    assert (state["state"], bool(state["error"])) == ("refused", True)
    assert not [path for path in folder_of(one_studio, uploads).iterdir() if path.name != ".uploads"]


def renamed(content: bytes, before: bytes, after: bytes) -> bytes:
    """A zip with other bytes for a name of the same length."""
    assert len(before) == len(after)
    return content.replace(before, after)


def test_names_in_other_encodings_become_unicode(one_studio: Studio, uploads: str):
    utf8 = "é狐.txt".encode()
    state = unpacked(one_studio, uploads, renamed(zipped({"x" * len(utf8): b"1"}), b"x" * len(utf8), utf8))
    assert (state["state"], state["num_files"]) == ("done", 1)
    japanese = "狐.txt".encode("cp932")
    content = renamed(zipped({"y" * len(japanese): b"2"}), b"y" * len(japanese), japanese)
    state = unpacked(one_studio, uploads, content, encoding="cp932")
    folder = folder_of(one_studio, uploads)
    assert (folder / "é狐.txt").read_bytes() == b"1"
    assert (folder / "狐.txt").read_bytes() == b"2"
    state = unpacked(
        one_studio, uploads, renamed(zipped({"z" * 5: b"3"}), b"zzzzz", b"\xff.txt"), encoding="nonsense"
    )
    assert state["num_files"] == 1


def test_unpacking_continues_after_a_crash(studio_at: Callable[..., Studio]):
    studio = studio_at().start()
    studio.post("/api/datasets", {"name": "fox"}, 201)
    uploads = "/api/datasets/fox/uploads"
    content = zipped({f"{i}.png": image_bytes() for i in range(50)})
    answer = begin(studio, uploads, len(content), filename="a.zip")
    # All bytes are there, and the studio was killed before it could say so.
    (
        studio.home / "data" / "fox" / ".uploads" / answer.headers["location"].rpartition("/")[2] / "data"
    ).write_bytes(content)
    studio.end(signal.SIGKILL)
    studio.start()
    state = wait_for(
        lambda: (state := studio.get(answer.headers["location"])["unpacking"])["state"] == "done" and state
    )
    assert state["num_files"] == 50


def test_many_files_are_uploaded_with_one_request_each(one_studio: Studio, uploads: str):
    for number in range(300):
        send_only(one_studio, uploads, f"{number}.txt", b"a fox")
    assert len(list(folder_of(one_studio, uploads).glob("*.txt"))) == 300


def send_only(studio: Studio, uploads: str, name: str, content: bytes) -> None:
    headers = PART | {"upload-length": str(len(content)), "upload-metadata": metadata(filename=name)}
    assert studio.http.post(uploads, headers=headers, content=content).status_code == 201


@pytest.mark.parametrize(
    "name", [".DS_Store", "Thumbs.db", "desktop.ini", "._fox.png", "notes.docx", "@eaDir/fox.png", "README"]
)
def test_a_file_of_no_use_is_skipped_and_not_an_error(one_studio: Studio, uploads: str, name: str):
    answer = begin(one_studio, uploads, 1, relativePath=name)
    assert (answer.status_code, answer.json()["type"]) == (422, "urn:flowloom:file-skipped")
    assert answer.json()["detail"].startswith(f"{name}: ")
    outside = begin(one_studio, uploads, 1, relativePath="../fox.png").json()
    assert outside["type"] == "urn:flowloom:invalid-name"
