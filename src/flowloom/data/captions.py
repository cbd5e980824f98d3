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


def vary(row: Row, epoch: int, rules: CaptionRules, seed: int) -> str:
    """The caption of `row` in `epoch`: a pure function of seed, epoch and row, so that nothing wears out."""
    draw = random.Random(f"{seed} {epoch} {row.index}")
    if draw.random() < rules.uncond:
        return ""
    caption = chosen_caption(row, epoch, seed)
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
