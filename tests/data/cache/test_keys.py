"""A key changes with each thing that decides a record's numbers, and with nothing else."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowloom.data.cache import keys as cache_keys
from flowloom.data.cache.keys import Contents, Crop, EncodedBy, caption_key, digest, latents_key
from flowloom.data.captions import CaptionRules, captions_of, vary
from flowloom.data.fetch.image_source import ImageSource
from flowloom.data.metadata import Row
from flowloom.errors import ImageError

sides = st.integers(16, 4096)
levels = st.integers(0, 255)
crops = st.builds(Crop, st.tuples(sides, sides), st.tuples(levels, levels, levels), st.text(max_size=9))
digests = st.binary(min_size=16, max_size=16)
makers = st.builds(EncodedBy, digests, st.text(max_size=9), st.text(max_size=9), st.text(max_size=9))
kinds = st.sampled_from(["image-latents", "video-latents"])
latents = st.tuples(kinds, digests, crops, makers)
captions = st.tuples(kinds, st.text(), makers)


@given(latents, latents)
def test_keys_of_latents_are_equal_exactly_when_all_they_are_made_of_is(one: Any, other: Any) -> None:
    assert (latents_key(*one) == latents_key(*other)) == (one == other)


@given(captions, captions)
def test_keys_of_captions_are_equal_exactly_when_all_they_are_made_of_is(one: Any, other: Any) -> None:
    assert (caption_key(*one) == caption_key(*other)) == (one == other)


@given(latents, latents)
def test_changing_any_one_ingredient_misses(one: Any, other: Any) -> None:
    kind, content, crop, by = one
    changed = [
        (other[0], content, crop, by),
        (kind, other[1], crop, by),
        *[(kind, content, replace(crop, **{f.name: getattr(other[2], f.name)}), by) for f in fields(Crop)],
        *[(kind, content, crop, replace(by, **{f.name: getattr(other[3], f.name)})) for f in fields(by)],
    ]
    for given_ in changed:
        assert (latents_key(*given_) == latents_key(*one)) == (given_ == one)


@given(st.lists(st.text(max_size=3), max_size=4), st.lists(st.text(max_size=3), max_size=4))
def test_where_one_ingredient_ends_counts(one: list[str], other: list[str]) -> None:
    assert (digest(*one) == digest(*other)) == (one == other)


def row(name: str, caption: str = "", is_tag_based: bool = False) -> Row:
    return Row(3, 4, name, caption, 8, 8, is_tag_based, False, 1.0)


def contents_of(folder: Path) -> Contents:
    return Contents(lambda row: str(folder), folder / "memory", ImageSource())


def test_a_file_is_known_by_its_bytes_and_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_keys, "JUST_WRITTEN_NS", 0)
    (tmp_path / "a.png").write_bytes(b"one")
    (tmp_path / "b.png").write_bytes(b"one")
    remembered = []
    for _ in range(2):
        contents = contents_of(tmp_path)
        assert contents.of(row("b.png")) == contents.of(row("a.png")) == contents.of(row("a.png"))
        contents.close()
        remembered.append([path.stat().st_size for path in (tmp_path / "memory").iterdir()])
    assert remembered == [[80], [80]], "two files of 40 bytes each, and the second time nothing new"
    with pytest.raises(ImageError):
        contents.of(row("c.png"))  # pyright: ignore[reportPossiblyUnboundVariable]


def test_a_file_that_changes_within_the_clocks_tick_is_seen(tmp_path: Path) -> None:
    contents = contents_of(tmp_path)
    found = set()
    for content in (b"one", b"two", b"six"):
        (tmp_path / "a.png").write_bytes(content)
        found.add(contents.of(row("a.png")))
    contents.close()
    assert len(found) == 3


def test_a_damaged_file_of_digests_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_keys, "JUST_WRITTEN_NS", 0)
    (tmp_path / "a.png").write_bytes(b"one")
    contents = contents_of(tmp_path)
    one = contents.of(row("a.png"))
    contents.close()
    (path,) = (tmp_path / "memory").iterdir()
    raw = path.read_bytes()
    for damaged in (raw[:-3], raw[:20] + b"x" + raw[21:], raw + raw[:13]):
        path.write_bytes(damaged)
        again = contents_of(tmp_path)
        assert again.of(row("a.png")) == one
        again.close()


tags = st.lists(st.text("abcXYZ", min_size=1, max_size=3), min_size=1, max_size=5).map(", ".join)
shares = st.floats(0, 1)


@given(tags, st.booleans(), shares, shares, st.integers(0, 3), st.integers(0, 40))
def test_shown_captions_are_among_the_cached_ones(
    caption: str, is_tag_based: bool, uncond: float, lowercase: float, variants: int, epoch: int
) -> None:
    rules = CaptionRules(uncond, shuffle_tags=True, tag_drop=0.5, lowercase=lowercase, variants=variants)
    one = row("a.png", caption, is_tag_based)
    cached = captions_of(one, rules, seed=1)
    shown = vary(one, epoch, rules, seed=1)
    if variants or not is_tag_based:
        assert shown in cached | {""}
        assert len(cached) <= max(variants, 2)
    else:
        assert not cached


captions_of_a_row = st.lists(tags, min_size=1, max_size=13)


@given(captions_of_a_row, st.booleans(), shares, st.integers(1, 9), st.integers(0, 100))
def test_a_filled_cache_has_exactly_the_shown_captions(
    written: list[str], is_tag_based: bool, lowercase: float, variants: int, begin: int
) -> None:
    """From any epoch on, every caption in each of its variants, and nothing else."""
    rules = CaptionRules(0.0, shuffle_tags=True, tag_drop=0.5, lowercase=lowercase, variants=variants)
    one = replace(row("a.png", written[0], is_tag_based), more_captions=tuple(written[1:]))
    times = range(begin, begin + len(written) * variants)
    assert {vary(one, showing, rules, seed=1) for showing in times} == captions_of(one, rules, seed=1)


@pytest.mark.parametrize("variants", [0, 1, 8])
@pytest.mark.parametrize("count", [2, 3, 8, 12])
def test_every_caption_of_an_image_is_shown_equally_often(count: int, variants: int) -> None:
    """Also with a cache of variants, for any number of them."""
    rules = CaptionRules(0.0, shuffle_tags=True, tag_drop=0.0, lowercase=0.3, variants=variants)
    one = replace(row("a.png", "caption 0"), more_captions=tuple(f"caption {i}" for i in range(1, count)))
    shown = Counter(vary(one, showing, rules, seed=4).lower() for showing in range(5 * count))
    assert shown == {f"caption {i}": 5 for i in range(count)}


@given(tags, st.integers(0, 7))
def test_the_first_epochs_are_as_without_variants(caption: str, epoch: int) -> None:
    rules = CaptionRules(0.2, shuffle_tags=True, tag_drop=0.5, lowercase=0.3)
    one = row("a.png", caption, is_tag_based=True)
    assert vary(one, epoch, rules, 5) == vary(one, epoch, replace(rules, variants=8), 5)
    several = replace(one, more_captions=("other, words", "third"))
    for showing in range(3 * epoch, 3 * epoch + 3):
        assert vary(several, showing, rules, 5) == vary(several, showing, replace(rules, variants=8), 5)
