"""A file comes whole or not at all, through every fault that a server or a kill makes."""

from __future__ import annotations

import hashlib
import ipaddress
import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from flowloom.errors import Denied, DiskFullError, NotFound, SourceError
from flowloom.storage.downloads import fetch as fetching
from flowloom.storage.downloads.fetch import Watch, already_there, facts_of, fetch
from flowloom.storage.downloads.request import DownloadClient
from flowloom.storage.ssrf import Allowed
from tests.fakes.files import Files

CONTENT = random.Random(0).randbytes(3_000_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
LOCAL = Allowed(networks=(ipaddress.ip_network("127.0.0.0/8"),))


class Stopped(Exception):
    """Raised by the watches of these tests."""


def stop_if(is_stopped: Callable[[], bool]) -> Callable[[], None]:
    def raise_if_stopped() -> None:
        if is_stopped():
            raise Stopped

    return raise_if_stopped


QUIET = Watch(lambda *_: None, lambda: None)


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "WAITS", (0.01,) * 4)


@pytest.fixture
def served(files: Files) -> Files:
    files.contents["/x.safetensors"] = CONTENT
    return files


def get(served: Files, target: Path, sha256: str | None = None, watch: Watch = QUIET) -> fetching.Fetched:
    return fetch(DownloadClient(LOCAL), f"{served.url}/x.safetensors", target, watch, sha256)


def is_complete(target: Path, content: bytes = CONTENT) -> bool:
    return target.read_bytes() == content and [path.name for path in target.parent.iterdir()] == [target.name]


def after(limit: int) -> tuple[Watch, list[int]]:
    """A watch that stops after so many bytes, and the sizes reported to it."""
    reported: list[int] = []
    return Watch(
        lambda done, _size: reported.append(done), stop_if(lambda: bool(reported) and reported[-1] >= limit)
    ), reported


def test_a_file_arrives_complete_with_its_checksum(served: Files, tmp_path: Path):
    reported: list[tuple[int, int | None]] = []
    watch = Watch(lambda done, size: reported.append((done, size)), lambda: None)
    done = get(served, tmp_path / "x.safetensors", watch=watch)
    assert (done.sha256, done.size, done.is_checked) == (SHA256, len(CONTENT), False)
    assert is_complete(tmp_path / "x.safetensors")
    assert reported[-1] == (len(CONTENT), len(CONTENT))


@pytest.mark.parametrize("sha256", [SHA256, None], ids=["sum known", "sum unknown"])
def test_a_stopped_download_continues_where_it_was(served: Files, tmp_path: Path, sha256: str | None):
    target = tmp_path / "x.safetensors"
    watch, reported = after(1_000_000)
    with pytest.raises(Stopped):
        get(served, target, sha256, watch)
    assert not target.exists()
    get(served, target, sha256)
    assert is_complete(target)
    assert served.ranges() == [None, f"bytes={reported[-1]}-"]


def test_a_download_continues_after_a_broken_connection(served: Files, tmp_path: Path):
    served.breaks_after = [1_500_000, 0, 700_000]
    get(served, tmp_path / "x.safetensors", SHA256)
    assert is_complete(tmp_path / "x.safetensors")
    starts = [
        int((header or "bytes=0-").removeprefix("bytes=").removesuffix("-")) for header in served.ranges()
    ]
    assert starts == sorted(starts)
    assert starts[-1] > 1_000_000


def test_a_download_from_a_server_without_ranges_begins_again(served: Files, tmp_path: Path):
    served.has_ranges = False
    served.breaks_after = [1_500_000]
    get(served, tmp_path / "x.safetensors", SHA256)
    assert is_complete(tmp_path / "x.safetensors")


def test_a_server_that_states_no_length_is_read_to_its_end(served: Files, tmp_path: Path):
    served.states_length = False
    assert get(served, tmp_path / "x.safetensors").size == len(CONTENT)
    assert is_complete(tmp_path / "x.safetensors")


@pytest.mark.parametrize("has_ranges", [True, False])
def test_a_file_that_changed_in_between_is_not_mixed_with_the_old_one(
    served: Files, tmp_path: Path, has_ranges: bool
):
    target, newer = tmp_path / "x.safetensors", CONTENT[::-1]
    watch, _ = after(1_000_000)
    with pytest.raises(Stopped):
        get(served, target, watch=watch)
    served.contents["/x.safetensors"], served.has_ranges = newer, has_ranges
    get(served, target)
    assert is_complete(target, newer)


def test_a_file_that_became_shorter_is_fetched_again(served: Files, tmp_path: Path):
    target = tmp_path / "x.safetensors"
    watch, _ = after(2_000_000)
    with pytest.raises(Stopped):
        get(served, target, watch=watch)
    note = json.loads((tmp_path / "x.safetensors.part.json").read_text())
    note["facts"]["sha256"] = SHA256  # as of a hub's file: then no If-Range is sent, and 416 is the answer
    (tmp_path / "x.safetensors.part.json").write_text(json.dumps(note))
    served.contents["/x.safetensors"] = CONTENT[:500_000]
    get(served, target)
    assert is_complete(target, CONTENT[:500_000])


def test_an_unfinished_download_of_another_address_is_not_used(served: Files, tmp_path: Path):
    (tmp_path / "x.safetensors.part").write_bytes(b"x" * 1000)
    (tmp_path / "x.safetensors.part.json").write_text('{"url": "https://example.org/x", "facts": {}}')
    get(served, tmp_path / "x.safetensors")
    assert is_complete(tmp_path / "x.safetensors")


@pytest.mark.parametrize("note", ["", "[]", '{"url": 3}', '{"url": "URL", "facts": {"odd": 1}}'])
def test_a_damaged_note_is_no_obstacle(served: Files, tmp_path: Path, note: str):
    (tmp_path / "x.safetensors.part").write_bytes(b"x" * 1000)
    note = note.replace("URL", f"{served.url}/x.safetensors")
    (tmp_path / "x.safetensors.part.json").write_text(note)
    get(served, tmp_path / "x.safetensors")
    assert is_complete(tmp_path / "x.safetensors")


def test_a_wrong_checksum_leaves_nothing(served: Files, tmp_path: Path):
    with pytest.raises(SourceError, match="instead of"):
        get(served, tmp_path / "x.safetensors", "0" * 64)
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_checksum_leaves_the_old_file(served: Files, tmp_path: Path):
    (tmp_path / "x.safetensors").write_bytes(b"old")
    with pytest.raises(SourceError):
        get(served, tmp_path / "x.safetensors", "0" * 64)
    assert is_complete(tmp_path / "x.safetensors", b"old")


def test_the_hub_states_the_checksum_itself(served: Files, elsewhere: Files, tmp_path: Path):
    elsewhere.contents["/stored/here"] = CONTENT[:-1] + b"?"
    path = "/me/model/resolve/main/x.safetensors"
    served.moved[path], served.linked[path] = f"{elsewhere.url}/stored/here", CONTENT
    client = DownloadClient(LOCAL, served.url)
    with pytest.raises(SourceError, match="instead of"):
        fetch(client, client.hub_url("me/model", "x.safetensors", "main"), tmp_path / "x", QUIET)
    elsewhere.contents["/stored/here"] = CONTENT
    assert fetch(
        client, client.hub_url("me/model", "x.safetensors", "main"), tmp_path / "x", QUIET
    ).is_checked


def test_too_large_for_the_disk_is_refused_before_a_byte_comes(served: Files, tmp_path: Path):
    served.claims = 2**60
    with pytest.raises(DiskFullError, match="Free some disk space"):
        get(served, tmp_path / "x.safetensors")
    assert (tmp_path / "x.safetensors.part").stat().st_size == 0


def test_passing_errors_of_the_server_are_waited_for(served: Files, tmp_path: Path):
    served.states = [503, 429, 500]
    get(served, tmp_path / "x.safetensors")
    assert is_complete(tmp_path / "x.safetensors")


def test_a_server_that_stays_down_is_given_up_with_a_message(served: Files, tmp_path: Path):
    served.states = [503] * 20
    with pytest.raises(SourceError, match="resume the run"):
        get(served, tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("status", "error"), [(404, NotFound), (403, Denied), (401, Denied), (400, SourceError)]
)
def test_final_answers_are_not_requested_twice(
    served: Files, tmp_path: Path, status: int, error: type[Exception]
):
    served.states = [status]
    with pytest.raises(error):
        get(served, tmp_path / "x.safetensors")
    assert len(served.requests) == 1


def test_a_web_page_is_no_model(served: Files, tmp_path: Path):
    served.kind = "text/html; charset=utf-8"
    with pytest.raises(SourceError, match="web page"):
        get(served, tmp_path / "x.safetensors")


def test_two_runs_do_not_write_one_file(served: Files, tmp_path: Path):
    errors: list[str] = []

    def second(done: int, _size: int | None) -> None:
        if not errors:
            with pytest.raises(SourceError) as error:
                get(served, tmp_path / "x.safetensors")
            errors.append(str(error.value))

    get(served, tmp_path / "x.safetensors", watch=Watch(second, lambda: None))
    assert "another run" in errors[0]
    assert is_complete(tmp_path / "x.safetensors")


def test_a_file_that_is_all_here_is_only_checked(served: Files, tmp_path: Path):
    phases: list[str] = []
    watch = Watch(lambda *_: None, stop_if(lambda: "checking" in phases), phases.append)
    with pytest.raises(Stopped):
        get(served, tmp_path / "x.safetensors", watch=watch)
    before = len(served.requests)
    get(served, tmp_path / "x.safetensors", SHA256)
    assert is_complete(tmp_path / "x.safetensors")
    assert len(served.requests) == before


@pytest.mark.parametrize("metadata", ["hub", "nothing"])
def test_an_existing_file_is_recognized(served: Files, tmp_path: Path, metadata: str):
    target, path = tmp_path / "x", "/me/model/resolve/main/x"
    served.moved[path] = f"{served.url}/x.safetensors"
    if metadata == "hub":
        served.linked[path] = CONTENT
    client = DownloadClient(LOCAL, served.url)
    facts = facts_of(client, client.hub_url("me/model", "x", "main"), QUIET)
    assert facts.size == len(CONTENT)
    for content, known in ((CONTENT, SHA256), (CONTENT[::-1], None), (CONTENT[:-1], None)):
        target.write_bytes(content)
        assert already_there(facts, target, QUIET) == (known if metadata == "hub" else None)


def test_a_small_file_of_the_hub_is_known_by_git_s_name(files: Files, tmp_path: Path):
    content = b'{"d_model": 4096}'
    files.contents["/me/model/resolve/main/config.json"] = content
    files.etag = hashlib.sha1(b"blob %d\0%b" % (len(content), content)).hexdigest()
    client, target = DownloadClient(LOCAL, files.url), tmp_path / "config.json"
    facts = facts_of(client, client.hub_url("me/model", "config.json", "main"), QUIET)
    target.write_bytes(content)
    assert already_there(facts, target, QUIET) == hashlib.sha256(content).hexdigest()
    target.write_bytes(content[::-1])
    assert already_there(facts, target, QUIET) is None


def test_facts_cost_no_download(served: Files):
    served.states = [503]
    facts = facts_of(DownloadClient(LOCAL), f"{served.url}/x.safetensors", QUIET)
    assert facts.size == len(CONTENT)
    assert served.ranges() == ["bytes=0-0"] * 2
