"""An iterator that works while its user does."""

from __future__ import annotations

from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from typing import TypeVar

Item = TypeVar("Item")

SECONDS_BETWEEN_LOOKS = 0.2


def in_background(items: Generator[Item], is_stopped: Callable[[], bool] = lambda: False) -> Generator[Item]:
    """The items of `items`, the next one made in a thread of its own while one is used.

    Whoever waits for the next one is let go as soon as `is_stopped` says so: a store may be down for hours.
    """
    with_one = ThreadPoolExecutor(1, thread_name_prefix="ahead")
    try:
        future = with_one.submit(_next, items)
        while _is_done(future, is_stopped) and (found := future.result()):
            future = with_one.submit(_next, items)
            yield found[0]
    finally:
        # After the item at hand: a generator that runs cannot be closed. While Python ends, no thread can be
        # asked any more; what is left behind ends with the process.
        with suppress(RuntimeError):
            with_one.submit(items.close)
        with_one.shutdown(wait=False)


def _next(items: Generator[Item]) -> tuple[Item] | None:
    for item in items:
        return (item,)
    return None


def _is_done(future: Future[Item], is_stopped: Callable[[], bool]) -> bool:
    """Wait for `future`; False when that was given up."""
    while not future.done():
        if is_stopped():
            return False
        wait([future], SECONDS_BETWEEN_LOOKS)
    return True
