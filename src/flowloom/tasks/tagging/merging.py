"""A new description and the caption that is there, to one."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from flowloom.tasks.tagging.config import DescribingConfig


@dataclass(frozen=True)
class Description:
    """What a model says of one image."""

    text: str
    """One line."""
    tags: tuple[str, ...] | None = None
    """None: it is prose."""
    scores: dict[str, float] = field(default_factory=dict)
    """How probable each is, 0 to 1, for those who look at it first."""


def key_of(tag: str) -> str:
    """What two spellings of a tag have in common."""
    return tag.strip().lower().replace("_", " ")


def merged(captions: tuple[str, ...], said: Description, config: DescribingConfig) -> tuple[str, ...]:
    """The captions to be written; none where there is nothing to say."""
    if captions and config.existing in ("append", "prepend"):
        texts = tuple(_joined(caption, said, config.existing == "append") for caption in captions)
    else:
        texts = (said.text,)
    return tuple(text for text in (_triggered(text, config.trigger.strip()) for text in texts) if text)


def _joined(caption: str, said: Description, is_after: bool) -> str:
    """`caption` with what it does not say already."""
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
