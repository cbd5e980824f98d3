"""Run an iterator in another thread, one item ahead."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TypeVar

Item = TypeVar("Item")

SECONDS_BETWEEN_CHECKS = 0.2


def in_background(items: Generator[Item], is_stopped: Callable[[], bool] = lambda: False) -> Generator[Item]:
    """Yield `items`; another thread makes the next item while the caller uses the current one.

    The iteration ends early when `is_stopped()` returns True, because a store may be down for hours. The
    thread closes `items` after the item that it is making.
    """
    requests: SimpleQueue[bool] = SimpleQueue()
    results: SimpleQueue[tuple[Item] | BaseException | None] = SimpleQueue()
    threading.Thread(target=_work, args=(items, requests, results), name="prefetch", daemon=True).start()
    requests.put(True)
    try:
        while result := _wait(results, is_stopped):
            if isinstance(result, BaseException):
                raise result
            requests.put(True)
            yield result[0]
    finally:
        # The garbage collector may close this generator in any thread, even one that holds a lock of
        # concurrent.futures, so nothing here may wait for a lock. SimpleQueue.put() does not.
        requests.put(False)


def _work(
    items: Generator[Item],
    requests: SimpleQueue[bool],
    results: SimpleQueue[tuple[Item] | BaseException | None],
) -> None:
    while requests.get():
        try:
            results.put((next(items),))
        except StopIteration:
            results.put(None)
        except BaseException as error:  # raised again by the reader
            results.put(error)
    with suppress(RuntimeError):  # no thread can be started while Python shuts down
        items.close()


def _wait(results: SimpleQueue[Item], is_stopped: Callable[[], bool]) -> Item | None:
    while True:
        try:
            return results.get(timeout=SECONDS_BETWEEN_CHECKS)
        except Empty:
            if is_stopped():
                return None
