"""A captioner in each of several processes, one for each GPU; only the run's main process writes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from flowloom.errors import FlowloomError, ImageError, RunError
from flowloom.tasks.tagging.merging import Description

T = TypeVar("T")

BATCHES_AHEAD = 2
"""Batches on their way, for each process."""

Answer = Description | ImageError
"""Of one image: its description, or the reason why it cannot be used."""


class Captioner(Protocol):
    """A model that describes images."""

    about: dict[str, Any]
    """The model, for the result."""

    def prepare(self, image: bytes) -> Any:
        """The model's input for an image; called by several threads.

        Raises:
            ImageError: the image is damaged, too large, or not an image.
        """
        ...

    def describe(self, images: Sequence[Any], names: Sequence[str]) -> list[Description]:
        """The description of each image."""
        ...


Load = Callable[[], Captioner]
"""Loads a captioner; other processes can call it too."""


class CaptionerProcesses:
    """Captioners in `num_processes` processes, each in use by one batch at a time."""

    def __init__(self, load: Load, num_processes: int):
        spawn = multiprocessing.get_context("spawn")
        self._pools = [
            ProcessPoolExecutor(1, spawn, _begin, (load, number)) for number in range(num_processes)
        ]
        self.about = self._result(self._pools[0].submit(_about)) | {"processes": num_processes}

    def describe_all(
        self, batches: Iterable[tuple[T, Sequence[bytes], Sequence[str]]]
    ) -> Iterator[tuple[T, list[Answer]]]:
        """The answers to each batch of image files and their names, in order, with its first element.

        Raises:
            RunError: a process ended, or its model failed.
        """
        waiting: deque[tuple[T, Future[list[Answer]]]] = deque()
        for number, (batch, images, names) in enumerate(batches):
            pool = self._pools[number % len(self._pools)]
            waiting.append((batch, self._submit(pool, images, names)))
            if len(waiting) >= BATCHES_AHEAD * len(self._pools):
                done, future = waiting.popleft()
                yield done, self._result(future)
        for batch, future in waiting:
            yield batch, self._result(future)

    def close(self) -> None:
        """End the processes after the batches that they work on."""
        for pool in self._pools:
            pool.shutdown(cancel_futures=True)

    def _submit(
        self, pool: ProcessPoolExecutor, images: Sequence[bytes], names: Sequence[str]
    ) -> Future[list[Answer]]:
        with self._ended():
            return pool.submit(_describe, images, names)

    def _result(self, future: Future[Any]) -> Any:
        with self._ended():
            return future.result()

    @contextmanager
    def _ended(self) -> Generator[None]:
        """Report a process that ended, before or after it got a batch."""
        try:
            yield
        except BrokenProcessPool as error:
            raise RunError(
                f"One of {len(self._pools)} processes was ended, perhaps because the memory was full. Use "
                "fewer processes or a smaller batch_size, then resume the run: it describes the images that "
                "are left."
            ) from error


@contextmanager
def captioner_processes(load: Load, num_processes: int) -> Generator[CaptionerProcesses]:
    """`CaptionerProcesses` that end with the `with` block."""
    processes = CaptionerProcesses(load, num_processes)
    try:
        yield processes
    finally:
        processes.close()


_state: dict[str, Any] = {}
"""Of a worker process: how to load its captioner, and the captioner once it is loaded."""


def _begin(load: Load, number: int) -> None:
    """Prepare a worker process: it sees one GPU, and ends with its parent and not by itself."""
    use_one_gpu(number)
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, signal.SIG_IGN)
    _state["load"] = load
    threading.Thread(target=_end_with_parent, daemon=True).start()


def use_one_gpu(number: int) -> None:
    """Make one of the visible GPUs the only one of this process."""
    devices = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    os.environ["CUDA_VISIBLE_DEVICES"] = devices[number % len(devices)] or str(number)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent:
        parent.join()
        os._exit(1)


def _captioner() -> Captioner:
    """The captioner of this process, loaded in its first task.

    Raises:
        RunError: it cannot be loaded; other errors of ours cannot all be sent to another process.
    """
    if "captioner" not in _state:
        try:
            _state["captioner"] = _state["load"]()
        except FlowloomError as error:
            raise RunError(str(error)) from None
    return _state["captioner"]


def _about() -> dict[str, Any]:
    return _captioner().about


def _describe(images: Sequence[bytes], names: Sequence[str]) -> list[Answer]:
    captioner = _captioner()
    prepared: dict[int, Any] = {}
    answers: dict[int, Answer] = {}
    for number, image in enumerate(images):
        try:
            prepared[number] = captioner.prepare(image)
        except ImageError as error:
            answers[number] = ImageError(str(error))
    if prepared:
        try:
            described = captioner.describe(list(prepared.values()), [names[number] for number in prepared])
        except FlowloomError as error:
            raise RunError(str(error)) from None
        answers |= dict(zip(prepared, described, strict=True))
    return [answers[number] for number in range(len(images))]
