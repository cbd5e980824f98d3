"""The next item is made while the current one is used, and dropping the iterator never blocks."""

from __future__ import annotations

import concurrent.futures.thread
import gc
import threading
from collections.abc import Generator

import pytest

from flowloom.data.prefetch import in_background


def counting(made: list[int], ends: threading.Event) -> Generator[int]:
    try:
        for number in range(5):
            made.append(number)
            yield number
    finally:
        ends.set()


def test_items_come_in_order_one_ahead_and_the_source_is_closed() -> None:
    made: list[int] = []
    ends = threading.Event()
    items = in_background(counting(made, ends))
    assert next(items) == 0
    for _ in range(100):
        if len(made) == 2:
            break
        threading.Event().wait(0.01)
    assert made == [0, 1]
    assert list(items) == [1, 2, 3, 4]
    assert ends.wait(5)
    again = in_background(counting([], ends := threading.Event()))
    next(again)
    again.close()
    assert ends.wait(5)


def test_an_error_of_the_source_is_raised_at_its_item() -> None:
    def broken() -> Generator[int]:
        yield 1
        raise ValueError("no second item")

    items = in_background(broken())
    assert next(items) == 1
    with pytest.raises(ValueError, match="no second item"):
        next(items)


def test_waiting_ends_when_it_is_stopped() -> None:
    release, stop = threading.Event(), threading.Event()

    def slow() -> Generator[int]:
        yield 1
        release.wait(30)
        yield 2

    items = in_background(slow(), stop.is_set)
    assert next(items) == 1
    stop.set()
    assert list(items) == []
    release.set()


def test_garbage_collection_within_a_submit_of_another_executor_does_not_block() -> None:
    """`ThreadPoolExecutor.submit` holds a lock of the whole process while it makes objects."""
    items = in_background(counting([], ends := threading.Event()))
    next(items)
    cycle = [items]
    cycle.append(cycle)  # type: ignore[arg-type] -- only the collector frees it
    done = threading.Event()

    def collect() -> None:
        with concurrent.futures.thread._global_shutdown_lock:
            gc.collect()
        done.set()

    del items, cycle
    threading.Thread(target=collect, daemon=True).start()
    assert done.wait(10)
    assert ends.wait(10)
