"""Captioners in processes: one that ended is reported, whenever it did."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from typing import Any

import pytest

from flowloom.errors import RunError
from flowloom.tasks.tagging.processes import captioner_processes


class Echo:
    """A captioner that needs no model."""

    def __init__(self) -> None:
        self.about: dict[str, Any] = {"model": "echo"}

    def prepare(self, image: bytes) -> bytes:
        return image

    def describe(self, images: Sequence[Any], names: Sequence[str]) -> list[Any]:
        return list(names)


def test_a_process_that_ended_between_two_batches_is_reported():
    with captioner_processes(Echo, 1) as captioners:
        (process,) = multiprocessing.active_children()
        process.kill()
        process.join()
        with pytest.raises(RunError, match="One of 1 processes was ended"):
            list(captioners.describe_all((i, [b""], ["name"]) for i in range(3)))
