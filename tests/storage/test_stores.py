"""Every store keeps the same promises: whole contents by name, listings in order, errors with a hint."""

from __future__ import annotations

import logging
import os
import re
import traceback
from datetime import timedelta
from pathlib import Path

import pytest

from flowloom.storage.base import Denied, NotFound, Source, SourceError, StorageSection, shown
from flowloom.storage.objects import Objects
from flowloom.storage.open import open_source
from tests.fakes.seaweed import SECRET, Seaweed, free_ports

ODD_NAMES = ["plain.png", "sub/deep/er.jpg", "mit Leerzeichen.png", "ünï/漢字 #1?.png", "per%20cent+plus.png"]


@pytest.fixture(params=["folder", "s3"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Source:
    if request.param == "s3":
        return request.getfixturevalue("bucket")
    return open_source(tmp_path, StorageSection())


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_written_object_is_read(source: Source, name: str) -> None:
    content = os.urandom(1000)
    source.write(name, content)
    assert source.read(name) == content
    assert source.read_range(name, 10, 20) == content[10:30]
    assert source.read_range(name, 990, 100) == content[990:]
    assert source.stat(name).size == 1000
    assert [entry.name for entry in source.list()] == [name]


def test_a_file_goes_up_whole_and_replaces_what_was_there(source: Source, tmp_path: Path) -> None:
    path = tmp_path.parent / f"{tmp_path.name}.bin"
    path.write_bytes(os.urandom(12 * 2**20))
    source.write("a/b.bin", b"before")
    before = source.stat("a/b.bin")
    source.write("a/b.bin", path)
    assert source.read("a/b.bin") == path.read_bytes()
    assert source.stat("a/b.bin").etag != before.etag


def test_a_file_that_is_not_there_is_not_taken_for_a_missing_object(source: Source, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such file to write") as caught:
        source.write("a", tmp_path / "missing")
    assert not isinstance(caught.value, NotFound)


def test_a_deleted_object_is_gone_and_may_be_deleted_again(source: Source) -> None:
    source.write("a.txt", b"a")
    source.delete("a.txt")
    source.delete("a.txt")
    with pytest.raises(NotFound, match=r"a\.txt"):
        source.read("a.txt")


def test_listings_have_every_name_once_below_the_prefix(source: Source) -> None:
    names = [f"in/{i:04}.txt" for i in range(30)]
    for name in [*names, "other/x.txt", "inner.txt"]:
        source.write(name, name.encode())
    assert [entry.name for entry in source.list("in")] == names
    sizes = {entry.size for entry in source.list("in")}
    assert sizes == {len(names[0])}


@pytest.mark.parametrize("name", ["../../outside.txt", "a/../../../x"])
def test_names_do_not_lead_out(source: Source, name: str) -> None:
    with pytest.raises(SourceError):
        source.read(name)


def test_long_listings_continue_past_a_page(bucket: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flowloom.storage.objects.PAGE", 7)
    for i in range(20):
        bucket.write(f"{i:02}", b"x")
    assert [entry.name for entry in bucket.list()] == [f"{i:02}" for i in range(20)]


def test_http_reads_presigned_objects_and_parts_of_them(bucket: Source, storage: StorageSection) -> None:
    bucket.write("a b.png", bytes(range(200)))
    url = presigned(bucket, "a b.png")
    host, name = re.findall(r"(http://[^/]+)/(.*)", url)[0]
    server = open_source(host, storage)
    assert server.read(name) == bytes(range(200))
    assert server.read_range(name, 5, 10) == bytes(range(5, 15))
    assert server.stat(name).size == 200
    with pytest.raises(SourceError, match="cannot be listed"):
        list(server.list())
    with pytest.raises(SourceError, match="cannot be written"):
        server.write("x", b"")
    with pytest.raises(Denied):
        server.read(name.replace("Signature=", "Signature=0"))


def presigned(bucket: Source, name: str) -> str:
    from obstore import sign

    assert isinstance(bucket, Objects)
    return sign(bucket.store, "GET", name, timedelta(minutes=5))  # pyright: ignore[reportArgumentType, reportCallIssue]


@pytest.mark.parametrize("url", ["ftp://host/a", "s3://", "s3://key:secret@bucket", "http://"])
def test_addresses_that_mean_nothing_are_refused(url: str) -> None:
    with pytest.raises(SourceError) as caught:
        open_source(url, StorageSection())
    assert "secret" not in str(caught.value)


def test_missing_settings_of_a_cloud_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    with pytest.raises(SourceError, match="Account"):
        open_source("az://container/prefix", StorageSection())
    assert open_source("gs://bucket/prefix", StorageSection(anonymous=True)).root == "gs://bucket/prefix"


def test_keys_come_from_a_profile_and_are_read_again(
    seaweed: Seaweed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    keys = f"aws_access_key_id = {seaweed.key}\naws_secret_access_key = {seaweed.secret}\n"
    (tmp_path / "credentials").write_text(f"[default]\n{keys}[loom]\n{keys}[keyless]\nregion = x\n")
    (tmp_path / "config").write_text(f"[profile loom]\nendpoint_url = {seaweed.endpoint}\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    assert open_source("s3://loom", StorageSection(profile="loom")).read("ready") == b"yes"
    assert open_source("s3://loom", StorageSection(endpoint=seaweed.endpoint)).read("ready") == b"yes"
    with pytest.raises(Denied, match="export-credentials"):
        open_source("s3://loom", StorageSection(profile="keyless"))
    (tmp_path / "credentials").write_text("aws_secret_access_key = hushhush\n[")
    with pytest.raises(Denied, match="not an AWS profile") as caught:
        open_source("s3://loom", StorageSection(profile="loom"))
    assert "hushhush" not in str(caught.value)


def test_without_keys_a_closed_bucket_is_denied_with_a_hint(storage: StorageSection) -> None:
    with pytest.raises(Denied, match=r"storage\.anonymous"):
        open_source("s3://loom", storage.model_copy(update={"anonymous": True})).read("ready")
    with pytest.raises(NotFound, match="bucket does not exist"):
        open_source("s3://no-such-bucket", storage).read("ready")


def test_no_message_and_no_log_has_a_secret(
    storage: StorageSection, bucket: Source, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    bucket.write("a.png", b"x")
    url = presigned(bucket, "a.png")
    host, name = re.findall(r"(http://[^/]+)/(.*)", url)[0]
    (signature,) = re.findall(r"Signature=(\w+)", url)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", f"wrong-{SECRET}")
    nowhere = f"127.0.0.1:{free_ports(1)[0]}"
    down = storage.model_copy(update={"endpoint": f"http://{nowhere}", "tries": 1, "patience_minutes": 0})
    password = "".join(reversed("hsuhhsuh"))
    reads = [
        lambda: open_source("s3://loom", storage).read("a.png"),
        lambda: open_source("s3://loom", down).read("a.png"),
        lambda: open_source(host, storage).read(f"x{name}"),
        lambda: open_source(f"http://me:{password}@{nowhere}", down).read(name),
    ]
    assert open_source(host, storage).read(name) == b"x"
    texts = []
    for read in reads:
        with pytest.raises(SourceError) as caught:
            read()
        texts.append("".join(traceback.format_exception(caught.value)))
    said = "\n".join([*texts, caplog.text])
    for secret in (SECRET, password, signature):
        assert secret not in said


def test_a_shown_address_has_no_password_and_no_signature() -> None:
    assert shown("https://me:pw@host:8/a/b.png?sig=1#x") == "https://host:8/a/b.png"
    assert shown("s3://bucket/a b?#.png") == "s3://bucket/a b?#.png"
    assert shown("a/b?c.png") == "a/b?c.png"
    assert "pw" not in shown("http://me:pw@[broken")
