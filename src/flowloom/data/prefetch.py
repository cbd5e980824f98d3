"""An iterator that works ahead of its reader."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TypeVar

Item = TypeVar("Item")

SECONDS_BETWEEN_CHECKS = 0.2


def in_background(items: Generator[Item], is_stopped: Callable[[], bool] = lambda: False) -> Generator[Item]:
    """Yield `items`, the next item made by another thread while the caller uses the present one.

    The iteration ends early once `is_stopped()` is true: a store may be down for hours. `items` is closed by
    that thread, after the item that it is making.
    """
    requests: SimpleQueue[bool] = SimpleQueue()
    answers: SimpleQueue[tuple[Item] | BaseException | None] = SimpleQueue()
    threading.Thread(target=_work, args=(items, requests, answers), name="prefetch", daemon=True).start()
    requests.put(True)
    try:
        while answer := _wait(answers, is_stopped):
            if isinstance(answer, BaseException):
                raise answer
            requests.put(True)
            yield answer[0]
    finally:
        # The garbage collector may end this generator in any thread and at any moment, also while that thread
        # holds a lock of concurrent.futures: nothing here may wait for one. SimpleQueue.put() never does.
        requests.put(False)


def _work(
    items: Generator[Item],
    requests: SimpleQueue[bool],
    answers: SimpleQueue[tuple[Item] | BaseException | None],
) -> None:
    while requests.get():
        try:
            answers.put((next(items),))
        except StopIteration:
            answers.put(None)
        except BaseException as error:  # the reader raises it
            answers.put(error)
    with suppress(RuntimeError):  # no thread can be started any more while Python ends
        items.close()


def _wait(answers: SimpleQueue[Item], is_stopped: Callable[[], bool]) -> Item | None:
    while True:
        try:
            return answers.get(timeout=SECONDS_BETWEEN_CHECKS)
        except Empty:
            if is_stopped():
                return None
