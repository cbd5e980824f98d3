"""No benchmark is left behind by a change of what it measures."""

from __future__ import annotations

import importlib

import pytest

from benchmarks.__main__ import descriptions


@pytest.mark.parametrize("name", descriptions())
def test_every_benchmark_can_be_started(name: str):
    assert callable(importlib.import_module(f"benchmarks.{name.replace('-', '_')}").run)
