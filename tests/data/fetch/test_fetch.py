"""Every row gets its own image, in the caller's order, within a limit of bytes, also with a faulty store."""

from __future__ import annotations

import asyncio
import random
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowloom.data.fetch.fetcher import Fetcher
from flowloom.data.fetch.memory_budget import MemoryBudget
from flowloom.errors import Denied, ImageError, SourceError
from flowloom.storage.base import StorageSection, StoreState
from flowloom.storage.open import open_source
from tests.fakes.faulty import FAULTS, Faulty
from tests.fakes.files import Files

NUM_OBJECTS = 120
LARGEST = 60_000


def content(i: int) -> bytes:
    draw = random.Random(i)
    return i.to_bytes(4, "big") + draw.randbytes(draw.randint(1000, LARGEST - 4))


def name(i: int) -> str:
    return f"s3://loom/fetch/{i:03}.png"


@pytest.fixture
def filled(storage: StorageSection) -> StorageSection:
    source = open_source("s3://loom/fetch", storage)
    if not [*source.list()]:
        for i in range(NUM_OBJECTS):
            source.write(f"{i:03}.png", content(i))
    return storage


def changed(storage: StorageSection, **changes: object) -> StorageSection:
    return StorageSection.model_validate(storage.model_dump() | changes)


@pytest.fixture
def small(filled: StorageSection) -> Iterator[Fetcher]:
    """With memory for a few images only."""
    with closing(Fetcher(changed(filled, read_ahead_mib=0.3))) as fetcher:
        yield fetcher


def test_each_row_gets_its_own_image_in_order_and_memory_is_bounded(small: Fetcher) -> None:
    order = random.Random(0).sample(range(NUM_OBJECTS), NUM_OBJECTS)
    fetches = [small.fetch(name(i), True, "") for i in order]
    for i, fetch in zip(order, fetches, strict=True):
        assert fetch.result(20) == content(i)
        assert small.ahead.held <= small.ahead.limit + LARGEST
    assert small.ahead.peak <= small.ahead.limit + LARGEST
    assert small.ahead.peak > small.ahead.limit / 2, "nothing was read ahead"


def test_images_that_are_taken_late_are_not_read_without_bound(small: Fetcher) -> None:
    fetches = [small.fetch(name(i), True, "") for i in range(NUM_OBJECTS)]
    until(lambda: small.ahead.held > small.ahead.limit / 2)
    time.sleep(0.3)
    done = sum(fetch.done() for fetch in fetches)
    assert 0 < done < NUM_OBJECTS / 4
    assert small.ahead.peak <= small.ahead.limit
    assert [fetch.result(20) for fetch in fetches] == [content(i) for i in range(NUM_OBJECTS)]


def until(is_so) -> None:
    end = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


def test_taking_images_in_any_order_never_hangs(small: Fetcher) -> None:
    fetches = [small.fetch(name(i), True, "") for i in range(NUM_OBJECTS)]
    assert fetches[-1].result(20) == content(NUM_OBJECTS - 1)
    with ThreadPoolExecutor(6) as pool:
        order = random.Random(1).sample(range(NUM_OBJECTS - 1), NUM_OBJECTS - 1)
        found = dict(zip(order, pool.map(lambda i: fetches[i].result(20), order), strict=True))
    assert found == {i: content(i) for i in order}


def test_images_larger_than_the_memory_come_one_by_one(filled: StorageSection) -> None:
    with closing(Fetcher(changed(filled, read_ahead_mib=0.0001))) as fetcher:
        fetches = [fetcher.fetch(name(i), True, "") for i in range(30)]
        assert [fetch.result(20) for fetch in fetches] == [content(i) for i in range(30)]


def test_leaving_early_frees_the_memory(small: Fetcher) -> None:
    for _ in range(3):
        fetches = [small.fetch(name(i), True, "") for i in range(NUM_OBJECTS)]
        fetches[0].result(20)
        for fetch in fetches:
            fetch.cancel()
        until(lambda: small.ahead.held == 0)
    with pytest.raises(CancelledError):
        fetches[-1].result(1)  # pyright: ignore[reportPossiblyUnboundVariable]


def test_closing_ends_all_requests(filled: StorageSection) -> None:
    fetcher = Fetcher(changed(filled, read_ahead_mib=0.1))
    fetches = [fetcher.fetch(name(i), True, "") for i in range(NUM_OBJECTS)]
    fetches[0].result(20)
    fetcher.close()
    assert all(fetch.done() for fetch in fetches)


def test_thousands_are_in_flight_on_one_thread(filled: StorageSection) -> None:
    with closing(Fetcher(filled)) as fetcher:
        before = threading.active_count()
        fetches = [fetcher.fetch(name(i % NUM_OBJECTS), True, "") for i in range(3000)]
        assert threading.active_count() <= before + 1
        found = [fetch.result(60) for fetch in fetches]
    assert found == [content(i % NUM_OBJECTS) for i in range(3000)]


def test_faults_and_an_outage_lose_double_and_reorder_nothing(filled: StorageSection, faulty: Faulty) -> None:
    draw = random.Random(5)
    faulty.slow_s = 0.05
    faulty.plan = lambda *_: draw.choice(FAULTS) if draw.random() < 0.2 else None
    states: list[StoreState] = []
    settings = changed(filled, endpoint=faulty.url, read_ahead_mib=0.5, tries=4)
    with closing(Fetcher(settings, states.append)) as fetcher:
        fetches = [fetcher.fetch(name(i), True, "") for i in range(NUM_OBJECTS)]
        first = [fetch.result(30) for fetch in fetches[: NUM_OBJECTS // 2]]
        faulty.down()
        with ThreadPoolExecutor(1) as pool:
            rest = pool.submit(lambda: [fetch.result(60) for fetch in fetches[NUM_OBJECTS // 2 :]])
            until(lambda: states)
            faulty.up()
            found = first + rest.result()
    assert found == [content(i) for i in range(NUM_OBJECTS)]
    assert [state.is_up for state in states][:2] == [False, True]
    assert faulty.done.total() - faulty.done["passed"] > 10


def test_only_the_row_without_an_image_is_reported(small: Fetcher) -> None:
    fetches = [small.fetch(each, True, "") for each in (name(0), "s3://loom/fetch/none.png", name(1))]
    assert fetches[0].result(20) == content(0)
    with pytest.raises(SourceError, match=r"none\.png: no such object"):
        fetches[1].result(20)
    assert fetches[2].result(20) == content(1)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://host/a.png", "a.png", "http://", "http://[x/a"])
def test_addresses_that_rows_may_not_name_are_refused(small: Fetcher, url: str) -> None:
    with pytest.raises(SourceError):
        small.fetch(url, True, "").result(5)


HIDDEN = (
    "http://169.254.0.1:9/latest/meta-data/", "http://127.0.0.1:{port}/a.png",
    "http://localhost:{port}/a.png",
    "http://[::1]:{port}/a.png", "http://[::ffff:127.0.0.1]:{port}/a.png", "http://2130706433:{port}/a.png",
    "http://0.0.0.0:{port}/a.png", "http://u:p@127.0.0.1:{port}/a.png", "HTTP://127.1:{port}/a.png",
)  # fmt: skip


@pytest.mark.parametrize("address", HIDDEN)
def test_no_row_reads_what_only_this_machine_may_see(address: str, files: Files) -> None:
    files.contents["/a.png"] = b"secret"
    with closing(Fetcher(StorageSection(tries=1))) as fetcher:
        with pytest.raises(Denied, match="set FLOWLOOM_PRIVATE_HOSTS="):
            fetcher.fetch(address.format(port=files.server_port), True, "").result(20)
        with pytest.raises(Denied):
            fetcher.stat(address.format(port=files.server_port), True, "")
    assert files.requests == []


def test_addresses_that_the_user_names_may_be_private(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    files.contents["/a.png"] = b"mine"
    with closing(Fetcher(StorageSection(tries=1))) as fetcher:
        assert fetcher.fetch("a.png", False, files.url).result(20) == b"mine"
        with pytest.raises(Denied):
            fetcher.fetch(f"{files.url}/a.png", True, files.url).result(20)
    monkeypatch.setenv("FLOWLOOM_PRIVATE_HOSTS", "nas.lan, 127.0.0.0/8")
    with closing(Fetcher(StorageSection(tries=1))) as fetcher:
        assert fetcher.fetch(f"{files.url}/a.png", True, "").result(20) == b"mine"


def test_no_server_redirects_to_a_private_address(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a store in a row nor one that the user trusts."""
    monkeypatch.setenv("FLOWLOOM_PRIVATE_HOSTS", "127.0.0.1")
    files.moved["/a.png"] = f"http://127.0.0.2:{files.server_port}/secret"
    files.contents["/secret"] = b"secret"
    with closing(Fetcher(StorageSection(tries=1))) as fetcher:
        for name, is_url_based in ((f"{files.url}/a.png", True), ("a.png", False)):
            with pytest.raises(Denied, match=r"127\.0\.0\.2 is 127\.0\.0\.2"):
                fetcher.fetch(name, is_url_based, files.url).result(20)
    assert [path for path, _ in files.requests] == ["/a.png", "/a.png"]


def test_a_name_that_changes_its_address_gets_no_request(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Public when it is asked for first, this machine when the connection is made."""
    real, hosts = socket.getaddrinfo, []

    def rebinding(host: str, *more: Any, **named: Any) -> Any:
        if host != "rebound.example":
            return real(host, *more, **named)
        hosts.append(host)
        return real("8.8.8.8" if len(hosts) == 1 else "127.0.0.1", *more, **named)

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    with closing(Fetcher(StorageSection(tries=1, timeout_s=0.3))) as fetcher, pytest.raises(SourceError):
        fetcher.fetch(f"http://rebound.example:{files.server_port}/a.png", True, "").result(20)
    assert len(hosts) == 1, "resolved once, and connected to what was checked"
    assert files.requests == []


@pytest.mark.parametrize(
    "bucket", ["169.254.169.254#", "127.0.0.1:80", "a b", "x?y", "x%2fy", "key:secret@x"]
)
def test_no_bucket_s_name_leads_to_another_host(bucket: str) -> None:
    with pytest.raises(SourceError, match="write s3://BUCKET"):
        open_source(f"s3://{bucket}/a", StorageSection(addressing="virtual"))


def test_a_folder_may_be_in_a_store(small: Fetcher) -> None:
    assert small.fetch("007.png", False, "s3://loom/fetch").result(20) == content(7)
    with pytest.raises(SourceError):
        small.fetch("../ready", False, "s3://loom/fetch").result(20)


def test_local_rows_are_paths_by_flows_lookup(small: Fetcher, tmp_path: Path) -> None:
    (tmp_path / "a.jxl").touch()
    (tmp_path / "a.png").touch()
    assert small.fetch("a.png", False, tmp_path).result(5) == (tmp_path / "a.jxl").resolve()
    for bad in ("missing.png", "../a.png", "a\0b.png", ""):
        with pytest.raises(ImageError):
            small.fetch(bad, False, tmp_path / "sub").result(5)


def test_the_disk_gives_what_the_store_has_now(
    filled: StorageSection, faulty: Faulty, tmp_path: Path
) -> None:
    source = open_source("s3://loom/changing", filled)
    for i in range(10):
        source.write(f"{i}.png", b"old" * (i + 1))
    settings = changed(filled, endpoint=faulty.url, cache_dir=str(tmp_path / "cache"))
    urls = [f"s3://loom/changing/{i}.png" for i in range(10)]

    def read() -> list[bytes | Path]:
        faulty.seen = 0
        with closing(Fetcher(settings)) as fetcher:
            for _ in range(3):
                found = [fetch.result(20) for fetch in [fetcher.fetch(url, True, "") for url in urls]]
        return found  # pyright: ignore[reportPossiblyUnboundVariable]

    assert read() == [b"old" * (i + 1) for i in range(10)]
    assert faulty.seen == 10, "each was read once"
    assert read() == [b"old" * (i + 1) for i in range(10)]
    assert faulty.seen == 10, "each was compared once"
    source.write("3.png", b"new")
    assert read() == [b"new" if i == 3 else b"old" * (i + 1) for i in range(10)]
    for path in (tmp_path / "cache").glob("??/*"):
        path.unlink()
    assert read() == [b"new" if i == 3 else b"old" * (i + 1) for i in range(10)]


def test_the_disk_keeps_its_limit(filled: StorageSection, tmp_path: Path) -> None:
    settings = changed(filled, cache_dir=str(tmp_path), cache_gib=500_000 / 2**30)
    with closing(Fetcher(settings)) as fetcher:
        for _ in range(2):
            fetches = [fetcher.fetch(name(i), True, "") for i in range(NUM_OBJECTS)]
            assert [fetch.result(20) for fetch in fetches] == [content(i) for i in range(NUM_OBJECTS)]
    sizes = sum(path.stat().st_size for path in tmp_path.glob("??/*"))
    assert 400_000 < sizes <= 500_000


@given(
    limit=st.integers(1, 100),
    sizes=st.lists(st.integers(0, 120), min_size=1, max_size=30),
    draw=st.randoms(use_true_random=False),
)
def test_memory_is_shared_in_order_and_every_waiter_is_served(
    limit: int, sizes: list[int], draw: random.Random
) -> None:
    async def play() -> None:
        ahead: MemoryBudget[int] = MemoryBudget(limit)
        tasks = [asyncio.create_task(ahead.reserve(i, size)) for i, size in enumerate(sizes)]
        left = list(range(len(sizes)))
        while left:
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            wanted = left.pop(draw.randrange(len(left)) if draw.random() < 0.3 else 0)
            ahead.want(wanted)
            await asyncio.wait_for(tasks[wanted], 1)
            assert ahead.held <= max(limit, max(sizes)) + sizes[wanted]
            ahead.release(wanted)
        assert ahead.held == 0

    asyncio.run(play())
