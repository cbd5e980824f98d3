"""Captions: from the bytes of a file to text, and whether a text is tags or prose."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import orjson

from flowloom.errors import DataError
from flowloom.text_files import decode as decode_text

CAPTION_KEYS = (
    "captions",
    "caption_or_tags",
    "caption",
    "text",
    "prompt",
    "description",
    "tags",
    "tag_string",
    "txt",
)
"""Names under which tables and JSON files keep a caption, the first one found wins; lower case."""
TAG_KEYS = ("tags", "tag_string")
_SENTENCE_END = re.compile(r"[^\W\d_]{2,}[.!?](\s|$)")
_FUNCTION_WORDS = frozenset(
    [
        "a",
        "an",
        "the",
        "is",
        "are",
        "was",
        "were",
        "be",
        "has",
        "have",
        "this",
        "that",
        "these",
        "there",
        "which",
        "who",
        "while",
        "his",
        "her",
        "its",
        "their",
    ]
)
_MISSING = frozenset(("nan", "none", "null", "<na>", "n/a", "nat"))
_LONGEST_LINE = 4
"""Words of a tag that has a line of its own; longer lines are prose."""
_LONGEST_TAG = 6
"""Words; what has more between two commas is a clause."""


@dataclass(frozen=True, slots=True)
class Caption:
    """One or more captions of a picture, and what stood beside them."""

    texts: tuple[str, ...]
    is_tag_based: bool | None = None
    loss_weight: float | None = None
    is_ordered: bool = False
    """Its tags must not be shuffled."""


def decode(data: bytes, encoding: str) -> str:
    """`data` as text: by its byte order mark, or else by `encoding`.

    Raises:
        DataError: it is not text in that encoding; the message says how to state another one.
    """
    try:
        return decode_text(data, encoding)
    except DataError as error:
        if str(error).startswith("not text"):
            raise
        raise DataError(
            f"{error}: save it as UTF-8, or state its encoding by --caption-encoding "
            "(caption_encoding in the studio), such as cp1252 or gbk"
        ) from error


def is_missing(text: str) -> bool:
    """Whether `text` is a word that tables write where there is nothing."""
    return text.strip().lower() in _MISSING


def read_sidecar(name: str, data: bytes, encoding: str) -> Caption:
    """The caption in the file `name`: all of a text, or the field of a JSON object that holds one.

    Raises:
        DataError: there is none.
    """
    text = decode(data, encoding)
    if not name.lower().endswith(".json"):
        return Caption((text,))
    try:
        fields = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise DataError(f"not JSON: {error}") from error
    if isinstance(fields, str):
        return Caption((fields,))
    if not isinstance(fields, dict):
        raise DataError("neither a JSON object nor a text")
    caption = caption_of(fields)
    if caption is None:
        known = ", ".join(CAPTION_KEYS)
        raise DataError(f"none of its fields is {known}: rename the field with the caption to caption")
    return caption


def caption_of(fields: dict[str, Any], column: str = "") -> Caption | None:
    """The caption in `fields`, under `column` or one of the usual names; None when there is none.

    Raises:
        DataError: what stands there is no caption.
    """
    lower = {key.lower(): key for key in reversed(fields) if isinstance(key, str)}
    names = [column] if column else [lower[key] for key in _caption_keys(fields, lower) if key in lower]
    given = [name for name in names if fields.get(name) is not None]
    name = next((name for name in given if fields[name] not in ("", [], {})), given[0] if given else None)
    if name is None:
        return None
    is_tags = True if name.lower() in TAG_KEYS else None
    value = fields[name]
    if isinstance(value, dict):  # of boorus: tags by category
        value = [tag for some in value.values() if isinstance(some, list) for tag in some]
    given: list[Any] = value if isinstance(value, list) else [value]
    texts = [text for text in given if text is not None]
    if not texts:
        return None
    if not all(isinstance(text, str) for text in texts):
        raise DataError(f"{name} is {value!r:.60}; it must be text, or a list of texts")
    if is_tags and isinstance(value, list):
        texts = [", ".join(texts)]
    elif is_tags and "," not in texts[0]:
        texts = [", ".join(texts[0].split())]  # as boorus keep them: blue_hair long_hair
    stated = fields.get("is_tag_based")
    is_tags = stated if isinstance(stated, bool) else is_tags
    return Caption(tuple(texts), is_tags, weight_of(fields.get("loss_weight")))


def _caption_keys(fields: dict[str, Any], lower: dict[str, str]) -> tuple[str, ...]:
    """The names in their order; of a booru's post, its artist's `description` comes last."""
    is_post = "tag_string" in lower or isinstance(fields.get(lower.get("tags", "")), dict)
    others = tuple(key for key in CAPTION_KEYS if key != "description")
    return (*others, "description") if is_post else CAPTION_KEYS


def is_tag_by_line(text: str) -> bool:
    """Whether a file seems to have one tag a line, as Hydrus writes them."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    is_list = len(lines) > 2 and all(len(line.split()) <= _LONGEST_LINE for line in lines)
    return is_list and not any("," in line or line[-1] in ".!?:;" for line in lines)


def weight_of(value: Any) -> float | None:
    """A recorded loss weight; None when there is none.

    Raises:
        DataError: it is not a number from 0 to 1.
    """
    if value is None or value == "":
        return None
    try:
        weight = float(value)
    except (TypeError, ValueError):
        weight = -1.0
    if not 0 <= weight <= 1:
        raise DataError(f"loss_weight is {value!r:.60}; it must be a number from 0 to 1")
    return weight


def looks_tag_based(caption: str) -> bool:
    """Whether `caption` is a list of tags: three or more short parts between commas, and no sentence."""
    parts = [part.split() for part in caption.lower().split(",")]
    parts = [words for words in parts if words]
    if len(parts) < 3 or _SENTENCE_END.search(caption):
        return False
    if max(len(words) for words in parts) > _LONGEST_TAG:
        return False
    like_prose = sum(any(word in _FUNCTION_WORDS for word in words) for words in parts)
    return like_prose * 3 < len(parts)
