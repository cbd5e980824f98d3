"""Near duplicates are found exactly, in any number; images of the same shape alone are not."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from flowloom.datasets.lint.near_duplicates import SIDE, fingerprint, group_near_duplicates


def blobs(seed: int, size: int = 288) -> Image.Image:
    """An image of soft blobs."""
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 7, 3), np.uint8)
    return Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)


def print_of(image: Image.Image):
    return fingerprint(np.asarray(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS)))


def labels(prints, aspects=None, **options):
    bits, colours = np.stack([p.bits for p in prints]), np.stack([p.colours for p in prints])
    whole = np.ones(len(prints)) if aspects is None else aspects
    return group_near_duplicates(bits, colours, whole, **options).labels


def test_a_resized_and_recompressed_copy_is_alike_and_others_are_not(tmp_path):
    blobs(0).resize((140, 140)).save(tmp_path / "copy.jpg", quality=50)
    images = [blobs(0), Image.open(tmp_path / "copy.jpg"), *(blobs(seed) for seed in range(1, 60))]
    found = labels([print_of(image) for image in images])
    assert found[0] == found[1]
    assert len(set(found.tolist())) == 60


def test_images_of_one_shape_in_other_colours_are_not_alike():
    squares = [Image.new("RGB", (64, 64), colour) for colour in ("red", "green", "blue", "white")]
    assert len(set(labels([print_of(square) for square in squares]).tolist())) == 4


def test_images_of_another_shape_are_not_alike():
    same = print_of(blobs(3))
    assert len(set(labels([same, same], np.array([1.0, 1.5])).tolist())) == 2
    assert len(set(labels([same, same], np.array([1.0, 1.01])).tolist())) == 1


def slowly(bits: np.ndarray, max_bits: int) -> np.ndarray:
    apart = np.bitwise_count(bits[:, None] ^ bits[None]).sum(axis=2)
    label = np.arange(len(bits))
    for _ in range(len(bits)):
        for i, j in zip(*np.nonzero(apart <= max_bits), strict=True):
            label[i] = label[j] = min(label[i], label[j])
    return label


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**32), max_bits=st.integers(0, 12), flips=st.integers(0, 14))
def test_the_search_finds_what_comparing_all_pairs_finds(seed, max_bits, flips):
    draw = np.random.default_rng(seed)
    single = draw.integers(0, 2, (6, 128), np.uint8)
    single = np.concatenate([single, single, single])
    for row in single[6:]:
        row[draw.choice(128, draw.integers(0, flips + 1), replace=False)] ^= 1
    bits = np.packbits(single, axis=1).view(">u8").astype(np.uint64)
    found = group_near_duplicates(bits, np.zeros((18, 192), np.uint8), np.ones(18), max_bits).labels
    expected = slowly(bits, max_bits)
    assert np.array_equal(found[:, None] == found[None], expected[:, None] == expected[None])


def test_no_images_give_no_groups():
    empty = group_near_duplicates(np.zeros((0, 2), np.uint64), np.zeros((0, 192), np.uint8), np.zeros(0))
    assert len(empty.labels) == 0
    assert empty.num_crowded == 0


def test_images_that_were_not_compared_with_all_others_are_counted(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("flowloom.datasets.lint.near_duplicates.WINDOW", 20)
    draw = np.random.default_rng(1)
    bits = draw.integers(0, 2**64, (60, 2), np.uint64)
    bits[:30, 0] &= np.uint64(2**40 - 1)  # 30 of them begin alike, as images on plain paper do
    bits[59] = bits[0]  # and one of these is there twice: both are counted
    found = group_near_duplicates(bits, np.zeros((60, 192), np.uint8), np.ones(60))
    assert found.num_crowded == 31
    monkeypatch.setattr("flowloom.datasets.lint.near_duplicates.WINDOW", 30)
    assert group_near_duplicates(bits, np.zeros((60, 192), np.uint8), np.ones(60)).num_crowded == 0


@pytest.mark.slow
def test_100_000_images_are_searched_in_seconds():
    draw = np.random.default_rng(0)
    bits = draw.integers(0, 2**64, (100_000, 2), np.uint64)
    bits[50_000:50_100] = bits[:100] ^ np.uint64(0b1011)
    colours = draw.integers(0, 256, (100_000, 192), np.uint8)
    colours[50_000:50_100] = colours[:100]
    started = time.perf_counter()
    found, crowded = group_near_duplicates(bits, colours, np.ones(100_000))
    assert crowded == 0
    assert len(set(found.tolist())) == 99_900
    assert time.perf_counter() - started < 30
