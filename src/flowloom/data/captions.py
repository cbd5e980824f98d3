"""What becomes of a caption in an epoch: dropped, shuffled, shortened, lower-cased."""

from __future__ import annotations

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
    """In how many ways a caption is shuffled, shortened and lower-cased, one an epoch and then again from the
    first, so that encoded captions may be kept; 0: anew each epoch."""


def vary(row: Row, epoch: int, rules: CaptionRules, seed: int) -> str:
    """The caption of `row` in `epoch`: a pure function of seed, epoch and row, so that nothing wears out."""
    if random.Random(f"{seed} {epoch} {row.index}").random() < rules.uncond:
        return ""
    return _variant(row, epoch % rules.variants if rules.variants else epoch, rules, seed)


def _variant(row: Row, number: int, rules: CaptionRules, seed: int) -> str:
    draw = random.Random(f"{seed} {number} {row.index}")
    draw.random()  # whether it is dropped: not of the variant
    caption = chosen_caption(row, number, seed)
    if row.is_tag_based and rules.shuffle_tags:
        tags = [tag.strip() for tag in caption.split(",") if tag.strip()]
        kept = math.ceil(len(tags) * draw.uniform(1 - rules.tag_drop, 1))
        caption = ", ".join(draw.sample(tags, kept))
    return caption.lower() if draw.random() < rules.lowercase else caption


def chosen_caption(row: Row, epoch: int, seed: int) -> str:
    """One of several captions of `row`: they take turns over the epochs, from a drawn one on."""
    captions = (row.caption, *row.more_captions)
    if len(captions) == 1:
        return row.caption
    first = random.Random(f"{seed} caption {row.index}").randrange(len(captions))
    return captions[(first + epoch) % len(captions)]


def captions_of(row: Row, rules: CaptionRules, seed: int) -> set[str]:
    """All that `vary` may ever make of `row`, but for the empty caption; nothing where that has no end."""
    if rules.variants:
        return {_variant(row, number, rules, seed) for number in range(rules.variants)}
    if row.is_tag_based and rules.shuffle_tags:
        return set()
    captions = (row.caption, *row.more_captions)
    written = set(captions) if rules.lowercase < 1 else set()
    return written | ({caption.lower() for caption in captions} if rules.lowercase > 0 else set())
