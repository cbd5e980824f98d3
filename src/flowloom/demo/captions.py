"""Captions for OpenMoji images, from the Unicode names of their code points."""

from __future__ import annotations

import re
import unicodedata

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "brown", "black", "white")
SHAPES = ("heart", "circle", "square")
UNSEEN = "white circle"
"""The one of the 27 pairs that is never trained: the network must combine it by itself."""

_JOINER, _SELECTOR, _KEYCAP = 0x200D, 0xFE0F, 0x20E3
_FLAG_LETTERS = range(0x1F1E6, 0x1F200)

_PLAIN = {
    # In Unicode, black and white mean filled and outlined hearts and suits; the images have colours.
    "heavy black heart": "red heart",
    "black heart suit": "heart suit",
    "black diamond suit": "diamond suit",
    "black spade suit": "spade suit",
    "black club suit": "club suit",
    "black large square": "black square",
    "white large square": "white square",
    "medium black circle": "black circle",
    "medium white circle": UNSEEN,
    "heavy large circle": "hollow red ring",
    "white medium star": "yellow star",
    "black telephone": "red telephone",
}
_LEFT_OUT = re.compile(
    # None of these is a plain black or white shape of the size that the captions promise.
    r"(black|white) (small|medium|medium small) square|^white square$|black large circle|heavy circle$"
    r"|overlapping .*squares|white hexagon|squared cjk|squared katakana|circled ideograph|regional indicator"
    r"|variation selector|private use|control"
)
_LARGE = re.compile(r"^large (?=\w+ (circle|square|diamond)$)")
_SYMBOL_FOR = re.compile(r"^(emoji modifier |symbol for )")


def caption_of(code: str) -> str | None:
    """The caption of the image whose file is named `code`, such as 2764 or 1F469-200D-1F680.

    None if there is no good one: flags, key caps, names newer than this Python's Unicode.
    """
    points = [int(part, 16) for part in code.split("-")]
    if any(point in _FLAG_LETTERS or point == _KEYCAP for point in points):
        return None
    names = [_name(point) for point in points if point not in (_JOINER, _SELECTOR)]
    if None in names or len(names) > 3:
        return None
    return ", ".join(name for name in names if name)


def _name(point: int) -> str | None:
    try:
        name = unicodedata.name(chr(point)).lower()
    except ValueError:
        return None
    if name in _PLAIN:
        return _PLAIN[name]
    if _LEFT_OUT.search(name):
        return None
    return _SYMBOL_FOR.sub("", _LARGE.sub("", name))
