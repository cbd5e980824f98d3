"""Variation of captions each time that they are shown: dropped, shuffled, shortened, lower-cased."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import dataclass

from flowloom.data.metadata import Row


@dataclass(frozen=True)
class CaptionRules:
    """FLOW's rules and their shares, 0 to 1."""

    uncond: float
    """Share of captions replaced by the empty one."""
    shuffle_tags: bool
    """False: tags are neither shuffled nor dropped."""
    tag_drop: float
    """Maximum share of dropped tags: n * u are kept, rounded up, with u uniform in [1 - tag_drop, 1]."""
    lowercase: float
    """Share of captions that are lower-cased."""
    variants: int = 0
    """Number of variants of each caption, shown in turn, so that encoded captions can be cached; 0: a new
    variant each time."""


def vary(row: Row, showing: int, rules: CaptionRules, seed: int) -> str:
    """The caption of `row` after it was shown `showing` times, a pure function of its arguments.

    Several captions alternate, beginning with a random one. The variant depends on the number of times that
    this caption was shown, so that each caption gets all variants.
    """
    if random.Random(f"{seed} {showing} {row.index}").random() < rules.uncond:
        return ""
    count = 1 + len(row.more_captions)
    first = random.Random(f"{seed} caption {row.index}").randrange(count) if count > 1 else 0
    times = showing // count
    number = times % rules.variants if rules.variants else times
    return _variant(row, (first + showing) % count, number, rules, seed)


def _variant(row: Row, which: int, number: int, rules: CaptionRules, seed: int) -> str:
    """Variant `number` of caption `which` of `row`."""
    purpose = f"{seed} {number} {row.index}"
    draw = random.Random(f"{purpose} {which}" if row.more_captions else purpose)
    draw.random()  # skip the number that `vary` uses for dropping
    caption = (row.caption, *row.more_captions)[which]
    if row.is_tag_based and rules.shuffle_tags:
        tags = [tag.strip() for tag in caption.split(",") if tag.strip()]
        kept = math.ceil(len(tags) * draw.uniform(1 - rules.tag_drop, 1))
        caption = ", ".join(draw.sample(tags, kept))
    return caption.lower() if draw.random() < rules.lowercase else caption


def captions_of(row: Row, rules: CaptionRules, seed: int) -> set[str]:
    """All captions that `vary` may return for `row`, except the empty one; empty if there is no limit."""
    captions = (row.caption, *row.more_captions)
    if rules.variants:
        variants = itertools.product(range(len(captions)), range(rules.variants))
        return {_variant(row, which, number, rules, seed) for which, number in variants}
    if row.is_tag_based and rules.shuffle_tags:
        return set()
    unchanged = set(captions) if rules.lowercase < 1 else set[str]()
    return unchanged | ({caption.lower() for caption in captions} if rules.lowercase > 0 else set())
