"""Faults of networks and busy stores: reads are tried again, wait while the store is down, and continue."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from flowloom.storage.base import NotFound, Source, SourceError, StorageSection, StoreState, Unavailable
from flowloom.storage.open import open_source
from tests.fakes.faulty import FAULTS, Faulty
from tests.fakes.seaweed import free_ports

NUM_OBJECTS = 40


def content(i: int) -> bytes:
    return random.Random(i).randbytes(1000 * (i + 1))


def behind(faulty: Faulty, storage: StorageSection, **changes: object) -> StorageSection:
    return storage.model_copy(update={"endpoint": faulty.url, **changes})


@pytest.fixture
def filled(storage: StorageSection) -> None:
    source = open_source("s3://loom/filled", storage)
    if not [*source.list()]:
        for i in range(NUM_OBJECTS):
            source.write(f"{i:02}", content(i))


@pytest.fixture(params=["s3", "http"])
def opened(request: pytest.FixtureRequest, faulty: Faulty, storage: StorageSection, filled: None) -> Callable:
    """Opens the filled folder behind the proxy, by either kind of source; and the list of states it hears."""

    def open_it(**changes: object) -> tuple[Any, list[StoreState]]:
        states: list[StoreState] = []
        settings = behind(faulty, storage, **changes)
        if request.param == "s3":
            return open_source("s3://loom/filled", settings, states.append), states
        return Presigned(open_source(faulty.url, settings, states.append), settings), states

    return open_it


class Presigned:
    """The filled folder by presigned addresses."""

    def __init__(self, server: Source, settings: StorageSection):
        self.server = server
        self.bucket: Any = open_source("s3://loom/filled", settings)

    def read(self, name: str) -> bytes:
        from datetime import timedelta

        from obstore import sign

        url = sign(self.bucket.store, "GET", name, timedelta(minutes=5))
        return self.server.read(url.removeprefix(self.server.root).removeprefix("/"))


@pytest.mark.parametrize("fault", [*FAULTS, "a mix"])
def test_nothing_is_lost_or_changed_by_faults(faulty: Faulty, opened: Callable, fault: str) -> None:
    draw = random.Random(1)
    kinds = FAULTS if fault == "a mix" else (fault,)
    faulty.slow_s = 0.3
    faulty.plan = lambda *_: draw.choice(kinds) if draw.random() < 0.3 else None
    source, states = opened(timeout_s=0.2 if fault == "slow" else 5.0)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: source.read(f"{i:02}"), range(NUM_OBJECTS)))
    assert found == [content(i) for i in range(NUM_OBJECTS)]
    assert sum(faulty.done[kind] for kind in kinds) >= 5
    assert not states


def test_a_store_that_is_down_is_waited_for_and_reported(faulty: Faulty, opened: Callable) -> None:
    source, states = opened(tries=2)
    assert source.read("00") == content(0)
    faulty.down()
    with ThreadPoolExecutor(8) as pool:
        reads = [pool.submit(source.read, f"{i:02}") for i in range(NUM_OBJECTS)]
        until(lambda: states)
        assert not any(read.done() for read in reads)
        faulty.up()
        assert [read.result(20) for read in reads] == [content(i) for i in range(NUM_OBJECTS)]
    assert [state.is_up for state in states] == [False, True]
    assert "is down (" in str(states[0])
    assert "is back after" in str(states[1])


def until(is_so: Callable[[], object]) -> None:
    end = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def test_while_the_store_is_down_few_requests_are_made(faulty: Faulty, opened: Callable) -> None:
    source, states = opened(tries=2)
    assert source.read("00") == content(0)
    faulty.plan = lambda *_: "drop"
    with ThreadPoolExecutor(8) as pool:
        reads = [pool.submit(source.read, f"{i:02}") for i in range(NUM_OBJECTS)]
        until(lambda: states)
        time.sleep(0.3)
        before = faulty.seen
        time.sleep(1.0)
        assert faulty.seen - before < 10
        faulty.plan = lambda *_: None
        assert [read.result(20) for read in reads] == [content(i) for i in range(NUM_OBJECTS)]


@pytest.mark.timing
def test_a_store_that_stays_down_ends_the_wait_with_a_hint(faulty: Faulty, opened: Callable) -> None:
    source, _ = opened(tries=1, patience_minutes=0.02)
    assert source.read("00") == content(0)
    faulty.down()
    with pytest.raises(Unavailable, match=r"storage\.patience_minutes"):
        source.read("01")
    start = time.monotonic()
    with pytest.raises(Unavailable):
        source.read("02")
    assert time.monotonic() - start < 0.5, "it is not waited for twice"
    faulty.up()
    assert source.read("03") == content(3)


def test_one_broken_object_is_named_and_holds_up_nothing(faulty: Faulty, opened: Callable) -> None:
    source, states = opened(tries=3)
    faulty.plan = lambda number, method, path: "truncate" if "/07" in path else None
    assert source.read("06") == content(6)
    with pytest.raises(Unavailable, match=r"filled/07"):
        source.read("07")
    assert faulty.done["truncate"] == 6
    assert not states


def test_missing_objects_are_requested_once(faulty: Faulty, opened: Callable) -> None:
    source, _ = opened()
    with pytest.raises(NotFound):
        source.read("no-such")
    assert faulty.seen == 1


def test_a_host_that_never_answered_is_not_waited_for(storage: StorageSection) -> None:
    states: list[StoreState] = []
    settings = storage.model_copy(update={"tries": 2})
    with pytest.raises(Unavailable, match="no connection"):
        open_source(f"http://127.0.0.1:{free_ports(1)[0]}", settings, states.append).read("a.png")
    assert not states


def test_a_listing_that_breaks_off_continues_without_repeats(
    faulty: Faulty, storage: StorageSection, filled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flowloom.storage.objects.PAGE", 5)
    draw = random.Random(3)
    faulty.plan = lambda *_: draw.choice(FAULTS[:4]) if draw.random() < 0.4 else None
    source = open_source("s3://loom/filled", behind(faulty, storage))
    assert [entry.name for entry in source.list()] == [f"{i:02}" for i in range(NUM_OBJECTS)]


def test_a_write_is_tried_again_and_arrives_whole(faulty: Faulty, storage: StorageSection) -> None:
    faulty.plan = lambda number, *_: ("slow down", "drop", None)[min(number, 2)]
    source = open_source("s3://loom/written", behind(faulty, storage))
    source.write("a", content(30))
    assert open_source("s3://loom/written", storage).read("a") == content(30)


def test_every_thread_may_use_a_source(opened: Callable) -> None:
    source, _ = opened(connections=4)
    found: dict[int, bytes] = {}

    def read(i: int) -> None:
        found[i] = source.read(f"{i:02}")

    threads = [threading.Thread(target=read, args=[i]) for i in range(NUM_OBJECTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {i: content(i) for i in range(NUM_OBJECTS)}


@pytest.mark.parametrize("status", [400, 451])
def test_refusals_are_final_and_state_their_number(status: int) -> None:
    from http.server import BaseHTTPRequestHandler, HTTPServer

    class Refuses(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(status)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Refuses) as server:
        thread = threading.Thread(target=server.serve_forever, args=[0.02])
        thread.start()
        try:
            with pytest.raises(SourceError, match=str(status)):
                open_source(f"http://127.0.0.1:{server.server_port}", StorageSection()).read("a")
        finally:
            server.shutdown()
            thread.join()
