"""Merging of a new description into an existing caption."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from flowloom.tasks.tagging.config import DescribingConfig


@dataclass(frozen=True)
class Description:
    """A model's description of one image."""

    text: str
    """One line."""
    tags: tuple[str, ...] | None = None
    """None: it is prose."""
    scores: dict[str, float] = field(default_factory=dict)
    """The probability of each, 0 to 1, for the result."""


def key_of(tag: str) -> str:
    """The common form of a tag's spellings."""
    return tag.strip().lower().replace("_", " ")


def merged(captions: tuple[str, ...], said: Description, config: DescribingConfig) -> tuple[str, ...]:
    """The captions to be written; empty without a description."""
    if captions and config.existing in ("append", "prepend"):
        texts = tuple(_joined(caption, said, config.existing == "append") for caption in captions)
    else:
        texts = (said.text,)
    return tuple(text for text in (_triggered(text, config.trigger.strip()) for text in texts) if text)


def _joined(caption: str, said: Description, is_after: bool) -> str:
    """`caption` with the new tags or text added."""
    if said.tags is None:
        new, glue = ("" if said.text in caption else said.text), " "
    else:
        known = {key_of(part) for part in re.split(r"[,\n]", caption)}
        new, glue = ", ".join(tag for tag in said.tags if key_of(tag) not in known), ", "
    if not new:
        return caption
    old = caption.strip().strip(",").strip()
    return f"{old}{glue}{new}" if is_after else f"{new}{glue}{old}"


def _triggered(text: str, trigger: str) -> str:
    if not trigger or text.lstrip().startswith(trigger):
        return text
    return f"{trigger}, {text}" if text.strip() else trigger
