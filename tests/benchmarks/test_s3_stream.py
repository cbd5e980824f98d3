"""The benchmark of streams reads what was written, both ways."""

import pytest

from benchmarks.s3_stream import run
from tests.fakes.seaweed import KEY, SECRET


def test_both_ways_read_the_written_images_in_order(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    measured = run(num_images=48, repeats=1)
    assert measured.correct
    assert measured.detail["latents_per_s"] > 0
