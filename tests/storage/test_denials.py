"""Denied access: to one object it is that object's fault, to everything it is waited for like an outage."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from flowloom.errors import Denied, StoreDenied, StoreDown
from flowloom.storage.base import Source, StorageSection, StoreState
from flowloom.storage.objects import Objects
from flowloom.storage.open import open_named, open_source
from tests.fakes.faulty import DENIED, Faulty
from tests.fakes.seaweed import Seaweed, free_ports

NUM_OBJECTS = 12
ADDRESS = "s3://loom/denials"


@pytest.fixture
def settings(storage: StorageSection, faulty: Faulty) -> StorageSection:
    """A filled folder, behind the proxy."""
    source = open_source(ADDRESS, storage)
    for i in range(NUM_OBJECTS):
        source.write(f"{i:02}", bytes([i]))
    return storage.model_copy(update={"endpoint": faulty.url, "tries": 2})


def opened(settings: StorageSection, **changes: object) -> tuple[Source, list[StoreState]]:
    states: list[StoreState] = []
    return open_source(ADDRESS, settings.model_copy(update=changes), states.append), states


def until_reported(states: list[StoreState]) -> None:
    end = time.monotonic() + 20
    while not states:
        assert time.monotonic() < end, "the store was not said to deny access"
        time.sleep(0.01)


@pytest.mark.parametrize("fault", DENIED)
def test_reading_waits_while_everything_is_denied(
    faulty: Faulty, settings: StorageSection, fault: str
) -> None:
    source, states = opened(settings)
    assert source.read("00") == b"\0"
    faulty.plan = lambda *_: fault
    with ThreadPoolExecutor(8) as pool:
        reads = [pool.submit(source.read, f"{i:02}") for i in range(NUM_OBJECTS)]
        sizes = pool.submit(source.stat, "03")
        until_reported(states)
        time.sleep(0.3)
        assert not any(read.done() for read in [*reads, sizes])
        faulty.plan = lambda *_: None
        assert [read.result(20) for read in reads] == [bytes([i]) for i in range(NUM_OBJECTS)]
        assert sizes.result(20).size == 1
    assert [(state.is_up, state.denies) for state in states] == [(False, True), (True, True)]
    assert "denies access (" in str(states[0])
    assert "grants access again" in str(states[1])


@pytest.mark.timing
@pytest.mark.parametrize("fault", DENIED)
def test_permanent_denial_ends_the_wait_with_a_hint(
    faulty: Faulty, settings: StorageSection, fault: str
) -> None:
    source, _ = opened(settings, patience_minutes=0.02)
    assert source.read("00") == b"\0"
    faulty.plan = lambda *_: fault
    with pytest.raises(StoreDenied, match=r"access denied for 0\.02 minutes \(40.*Renew the keys"):
        source.read("01")
    start = time.monotonic()
    with pytest.raises(StoreDenied, match="access denied"):
        source.read("02")
    assert time.monotonic() - start < 1, "it is not waited for twice"
    faulty.plan = lambda *_: None
    assert source.read("03") == b"\3"


@pytest.mark.parametrize("fault", ["denied", "unknown key"])
def test_one_denied_object_is_named_and_holds_up_nothing(
    faulty: Faulty, settings: StorageSection, fault: str
) -> None:
    """Also where it is among the first that are asked for: it may be missing, and the store not say so."""
    faulty.plan = lambda _number, _method, path: "denied" if path.endswith("/00") else None
    source, states = opened(settings)
    with ThreadPoolExecutor(8) as pool:
        reads = [pool.submit(source.read, f"{i:02}") for i in range(NUM_OBJECTS)]
        with pytest.raises(Denied, match="denials/00: access denied") as caught:
            reads[0].result(20)
        assert [read.result(20) for read in reads[1:]] == [bytes([i]) for i in range(1, NUM_OBJECTS)]
    faulty.plan = lambda _number, _method, path: fault if path.endswith("/05") else None
    with pytest.raises(Denied, match="denials/05: access denied") as later:
        source.read("05")
    assert not isinstance(caught.value, StoreDenied)
    assert not isinstance(later.value, StoreDenied)
    assert not states


@pytest.mark.parametrize("fault", DENIED)
def test_a_store_that_denies_the_first_reads_is_not_waited_for(
    faulty: Faulty, settings: StorageSection, fault: str
) -> None:
    faulty.plan = lambda *_: fault
    source, states = opened(settings)
    with ThreadPoolExecutor(8) as pool:
        reads = [pool.submit(source.read, f"{i:02}") for i in range(NUM_OBJECTS)]
        for read in reads:
            with pytest.raises(StoreDenied, match=r"access denied \(40.*Check the keys"):
                read.result(20)
    assert not states


def test_writing_and_listing_wait_too(faulty: Faulty, settings: StorageSection) -> None:
    source, states = opened(settings)
    source.write("new/a", b"a")
    faulty.plan = lambda *_: "expired"
    with ThreadPoolExecutor(2) as pool:
        written = pool.submit(source.write, "new/b", b"b")
        listed = pool.submit(lambda: [entry.name for entry in source.list("new")])
        until_reported(states)
        faulty.plan = lambda *_: None
        written.result(20)
        assert "new/a" in listed.result(20)
    assert source.read("new/b") == b"b"


def test_a_store_that_was_only_listed_is_waited_for(faulty: Faulty, settings: StorageSection) -> None:
    source, states = opened(settings)
    names = [entry.name for entry in source.list()]
    faulty.plan = lambda *_: "denied"
    with ThreadPoolExecutor(2) as pool:
        read = pool.submit(source.read, "05")
        listed = pool.submit(lambda: [entry.name for entry in source.list()])
        until_reported(states)
        faulty.plan = lambda *_: None
        assert read.result(20) == b"\5"
        assert listed.result(20) == names


def test_keys_that_can_only_read_are_reported_at_once(faulty: Faulty, settings: StorageSection) -> None:
    faulty.plan = lambda _number, method, _path: "denied" if method == "PUT" else None
    source, states = opened(settings)
    assert source.read("00") == b"\0"
    with pytest.raises(Denied, match="denials/x: access denied") as caught:
        source.write("x", b"x")
    assert not isinstance(caught.value, StoreDenied)
    assert not states


def test_a_deleted_object_is_no_proof_of_access(faulty: Faulty, settings: StorageSection) -> None:
    """Without the right to list, a store returns 403 for missing objects."""
    source, states = opened(settings)
    source.write("passing", b"x")
    source.delete("passing")
    faulty.plan = lambda _number, _method, path: "denied" if path.endswith(("passing", "/05")) else None
    with pytest.raises(Denied, match="denials/05: access denied") as caught:
        source.read("05")
    assert not isinstance(caught.value, StoreDenied)
    assert not states


def test_new_keys_of_a_profile_are_used_as_soon_as_the_old_ones_are_revoked(
    seaweed: Seaweed, settings: StorageSection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store itself revokes them; a client would otherwise use what it read for ten minutes."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    seaweed.give_keys("first", "first-secret")
    write_profile(tmp_path, "first")
    source, states = opened(settings.model_copy(update={"endpoint": seaweed.endpoint}), profile="loom")
    assert source.read("00") == b"\0"
    seaweed.revoke_keys("first")
    with ThreadPoolExecutor(1) as pool:
        read = pool.submit(source.read, "01")
        until_reported(states)
        # As an editor may leave the file for a moment.
        (tmp_path / "credentials").write_text("[loom]\n")
        time.sleep(0.5)
        seaweed.give_keys("second", "second-secret")
        write_profile(tmp_path, "second")
        assert read.result(20) == b"\1"
    seaweed.give_keys("third", "third-secret")
    write_profile(tmp_path, "third")
    seaweed.revoke_keys("second")
    assert source.read("02") == b"\2"
    assert [state.is_up for state in states] == [False, True]
    assert "InvalidAccessKeyId" in str(states[0])


def write_profile(folder: Path, key: str) -> None:
    lines = f"[loom]\naws_access_key_id = {key}\naws_secret_access_key = {key}-secret\n"
    (folder / "credentials").write_text(lines)


def test_a_web_server_that_the_user_names_is_waited_for_and_one_that_rows_name_is_not(
    faulty: Faulty, settings: StorageSection, monkeypatch: pytest.MonkeyPatch
) -> None:
    from datetime import timedelta

    from obstore import sign

    monkeypatch.setenv("FLOWLOOM_PRIVATE_HOSTS", "127.0.0.1")
    bucket = open_source(ADDRESS, settings)
    assert isinstance(bucket, Objects)
    names = [
        sign(bucket.store, "GET", f"{i:02}", timedelta(minutes=5)).removeprefix(f"{faulty.url}/")  # pyright: ignore[reportArgumentType, reportCallIssue]
        for i in range(3)
    ]
    states: list[StoreState] = []
    named = open_named(faulty.url, settings, states.append)
    given = open_source(faulty.url, settings, states.append)
    assert named.read(names[0]) == given.read(names[0]) == b"\0"
    faulty.plan = lambda *_: "denied"
    with pytest.raises(Denied) as caught:
        named.read(names[1])
    assert not isinstance(caught.value, StoreDenied)
    assert not states
    with ThreadPoolExecutor(1) as pool:
        read = pool.submit(given.read, names[1])
        until_reported(states)
        faulty.plan = lambda *_: None
        assert read.result(20) == b"\1"


def test_a_store_that_stays_down_is_not_its_rows_fault(storage: StorageSection) -> None:
    nowhere = f"http://127.0.0.1:{free_ports(1)[0]}"
    settings = storage.model_copy(update={"endpoint": nowhere, "tries": 1, "patience_minutes": 0.005})
    with pytest.raises(StoreDown, match=r"down for 0\.005 minutes"):
        open_source(ADDRESS, settings).read("00")
    with pytest.raises(StoreDown, match="no connection"):
        open_source(nowhere, settings).read("00")
