"""What becomes of a caption each time that it is shown: dropped, shuffled, shortened, lower-cased."""

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
    """Off: tags are neither shuffled nor dropped."""
    tag_drop: float
    """Largest share of tags to drop: n * u stay, rounded up, u uniform in [1 - tag_drop, 1]."""
    lowercase: float
    """Share of captions that are lower-cased."""
    variants: int = 0
    """In how many ways each caption is shuffled, shortened and lower-cased, one after the other and then from
    the first again, so that encoded captions may be kept; 0: differently each time."""


def vary(row: Row, showing: int, rules: CaptionRules, seed: int) -> str:
    """The caption of `row` when it was shown `showing` times before, a pure function of its arguments.

    Captions take turns from one time to the next, beginning with a drawn one; each is varied by how often it
    had its own turn, so that all of them meet all variants.
    """
    if random.Random(f"{seed} {showing} {row.index}").random() < rules.uncond:
        return ""
    count = 1 + len(row.more_captions)
    first = random.Random(f"{seed} caption {row.index}").randrange(count) if count > 1 else 0
    turn = showing // count
    number = turn % rules.variants if rules.variants else turn
    return _variant(row, (first + showing) % count, number, rules, seed)


def _variant(row: Row, which: int, number: int, rules: CaptionRules, seed: int) -> str:
    """Variant `number` of caption `which` of `row`."""
    purpose = f"{seed} {number} {row.index}"
    draw = random.Random(f"{purpose} {which}" if row.more_captions else purpose)
    draw.random()  # whether it is dropped: not of the variant
    caption = (row.caption, *row.more_captions)[which]
    if row.is_tag_based and rules.shuffle_tags:
        tags = [tag.strip() for tag in caption.split(",") if tag.strip()]
        kept = math.ceil(len(tags) * draw.uniform(1 - rules.tag_drop, 1))
        caption = ", ".join(draw.sample(tags, kept))
    return caption.lower() if draw.random() < rules.lowercase else caption


def captions_of(row: Row, rules: CaptionRules, seed: int) -> set[str]:
    """All that `vary` may ever make of `row`, but for the empty caption; nothing where that has no end."""
    captions = (row.caption, *row.more_captions)
    if rules.variants:
        places = itertools.product(range(len(captions)), range(rules.variants))
        return {_variant(row, which, number, rules, seed) for which, number in places}
    if row.is_tag_based and rules.shuffle_tags:
        return set()
    written = set(captions) if rules.lowercase < 1 else set()
    return written | ({caption.lower() for caption in captions} if rules.lowercase > 0 else set())
