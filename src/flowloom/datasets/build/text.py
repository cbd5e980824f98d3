"""Read captions from files and fields, and classify them as tags or prose."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import orjson

from flowloom.errors import DataError
from flowloom.json_types import is_array, is_object
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
"""Names of caption fields in tables and JSON files, in lower case; the first one found is used."""
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
_MAX_LINE_WORDS = 4
"""Words of a tag on a separate line; longer lines are prose."""
_MAX_TAG_WORDS = 6
"""Words between two commas; more are a clause."""


@dataclass(frozen=True, slots=True)
class Caption:
    """One or more captions of an image, with the fields beside them."""

    texts: tuple[str, ...]
    is_tag_based: bool | None = None
    loss_weight: float | None = None
    is_ordered: bool = False
    """Its tags must not be shuffled."""


def decode(data: bytes, encoding: str) -> str:
    """`data` as text, by its byte order mark or by `encoding`.

    Raises:
        DataError: it is not text in that encoding; the message says how to choose another one.
    """
    try:
        return decode_text(data, encoding)
    except DataError as error:
        if str(error).startswith("not text"):
            raise
        raise DataError(
            f"{error}: save it as UTF-8, or set its encoding with --caption-encoding "
            "(caption_encoding in the studio), such as cp1252 or gbk"
        ) from error


def is_missing(text: str) -> bool:
    """True if `text` is a placeholder that tables write for a missing value."""
    return text.strip().lower() in _MISSING


def read_sidecar(name: str, data: bytes, encoding: str) -> Caption:
    """The caption in the file `name`: all of a text file, or the caption field of a JSON object.

    Raises:
        DataError: it has no caption.
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
    if not is_object(fields):
        raise DataError("not a JSON object or text")
    caption = caption_of(fields)
    if caption is None:
        keys = ", ".join(CAPTION_KEYS)
        raise DataError(f"none of its fields is {keys}: rename the field with the caption to caption")
    return caption


def caption_of(fields: dict[str, Any], column: str = "") -> Caption | None:
    """The caption in `fields`, in `column` or a field of a usual name; None if there is none.

    Raises:
        DataError: the value is not a caption.
    """
    lower = {key.lower(): key for key in reversed(fields)}
    names = [column] if column else [lower[key] for key in _caption_keys(fields, lower) if key in lower]
    given = [name for name in names if fields.get(name) is not None]
    name = next((name for name in given if fields[name] not in ("", [], {})), given[0] if given else None)
    if name is None:
        return None
    is_tags = True if name.lower() in TAG_KEYS else None
    value = fields[name]
    if is_object(value):  # from boorus: tags by category
        value = [tag for group in value.values() if is_array(group) for tag in group]
    given: list[Any] = value if is_array(value) else [value]
    texts = [text for text in given if text is not None]
    if not texts:
        return None
    if not all(isinstance(text, str) for text in texts):
        raise DataError(f"{name} is {value!r:.60}; it must be text, or a list of texts")
    if is_tags and is_array(value):
        texts = [", ".join(texts)]
    elif is_tags and "," not in texts[0]:
        texts = [", ".join(texts[0].split())]  # as boorus write them: blue_hair long_hair
    stated = fields.get("is_tag_based")
    is_tags = stated if isinstance(stated, bool) else is_tags
    return Caption(tuple(texts), is_tags, weight_of(fields.get("loss_weight")))


def _caption_keys(fields: dict[str, Any], lower: dict[str, str]) -> tuple[str, ...]:
    """The names in order of precedence; in a booru's post the artist's `description` is last."""
    is_post = "tag_string" in lower or isinstance(fields.get(lower.get("tags", "")), dict)
    others = tuple(key for key in CAPTION_KEYS if key != "description")
    return (*others, "description") if is_post else CAPTION_KEYS


def is_tag_by_line(text: str) -> bool:
    """True if a file seems to have one tag per line, as Hydrus writes them."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    is_list = len(lines) > 2 and all(len(line.split()) <= _MAX_LINE_WORDS for line in lines)
    return is_list and not any("," in line or line[-1] in ".!?:;" for line in lines)


def weight_of(value: Any) -> float | None:
    """A recorded loss weight; None if there is none.

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
    """True if `caption` is a list of tags: three or more short parts between commas, and no sentence."""
    parts = [part.split() for part in caption.lower().split(",")]
    parts = [words for words in parts if words]
    if len(parts) < 3 or _SENTENCE_END.search(caption):
        return False
    if max(len(words) for words in parts) > _MAX_TAG_WORDS:
        return False
    like_prose = sum(any(word in _FUNCTION_WORDS for word in words) for words in parts)
    return like_prose * 3 < len(parts)
