"""sd-scripts' syntax in captions: alternatives in braces, and tag separators."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import product
from math import lcm, prod

MAX_VARIANTS = 64
"""Limit for one caption; of more combinations an even selection is used."""
_ALTERNATIVES = re.compile(r"\{([^}]+)\}")
_OPEN, _CLOSED = "\ue000", "\ue001"
_MARKS = (
    (re.compile(r"\|\|\|"), "'|||', sd-scripts' usual keep_tokens_separator"),
    (re.compile(r";;;"), "';;;', sd-scripts' usual secondary_separator"),
    (re.compile(r"\{[^{}|]*\|[^{}]*\}"), "alternatives like {a|b}, sd-scripts' wildcards"),
)


def variants(caption: str) -> list[str]:
    """The captions that `a {red|blue} fox` expands to; `{{` and `}}` are literal braces."""
    escaped = caption.replace("{{", _OPEN).replace("}}", _CLOSED)
    choices = [match[1].split("|") for match in _ALTERNATIVES.finditer(escaped)]
    texts = _ALTERNATIVES.split(escaped)[::2]
    expanded = ("".join(_mixed(texts, picked)) for picked in _combinations(choices))
    return [text.replace(_OPEN, "{").replace(_CLOSED, "}") for text in expanded]


def balanced(lines: list[list[str]]) -> list[str]:
    """The variants of several lines, repeated so that each line counts equally."""
    times = lcm(*map(len, lines))
    if times * len(lines) > MAX_VARIANTS:
        return [caption for line in lines for caption in line]
    return [caption for line in lines for caption in line * (times // len(line))]


def num_variants(caption: str) -> int:
    """The number of combinations of alternatives in `caption`."""
    escaped = caption.replace("{{", _OPEN).replace("}}", _CLOSED)
    return prod(match[1].count("|") + 1 for match in _ALTERNATIVES.finditer(escaped))


def _mixed(texts: list[str], picked: tuple[str, ...]) -> Iterator[str]:
    for text, choice in zip(texts, (*picked, ""), strict=True):
        yield text
        yield choice


def _combinations(choices: list[list[str]]) -> Iterator[tuple[str, ...]]:
    """Every combination, or MAX_VARIANTS of them."""
    total = prod(map(len, choices))
    if total <= MAX_VARIANTS:
        yield from product(*choices)
        return
    for number in range(MAX_VARIANTS):
        rest, picked = number * total // MAX_VARIANTS, list[str]()
        for choice in reversed(choices):
            rest, at = divmod(rest, len(choice))
            picked.append(choice[at])
        yield tuple(reversed(picked))


def unused_marks(caption: str) -> list[str]:
    """Names of sd-scripts' syntax that a caption contains literally."""
    return [name for pattern, name in _MARKS if pattern.search(caption)]
