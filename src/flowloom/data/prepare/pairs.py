"""Which caption file belongs to which picture of a folder."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, KeysView
from dataclasses import dataclass, replace
from typing import TypeVar

from flowloom.data.prepare.items import JXL, PICTURES, Remark, Unusable, shown

Entry = TypeVar("Entry")


@dataclass(frozen=True)
class PairRule:
    """What counts as a caption file."""

    suffixes: tuple[str, ...]
    """The first one that is there wins."""
    is_shared: bool = False
    """Kohya's rule: pictures of the same name and other suffixes share the caption."""


def split_suffix(name: str) -> tuple[str, str]:
    """Stem and suffix of a file name; the suffix in lower case, with its dot."""
    stem, dot, suffix = name.rpartition(".")
    return (stem, f".{suffix.lower()}") if dot and stem else (name, "")


def pair(
    names: dict[str, Entry], folder: str, rule: PairRule
) -> Iterator[tuple[str, Entry, Entry | None] | Unusable | Remark]:
    """(name, picture, its caption file or None) of each picture among the `names` of one folder, in order.

    `a.jpg.txt` belongs to `a.jpg` alone; `a.txt` to the only picture that is named `a`.

    Args:
        folder: prefix of the names in reports: "" or "sub/".
    """
    stems: dict[str, list[str]] = defaultdict(list)
    texts: dict[str, Entry] = {}
    for name in names:
        stem, suffix = split_suffix(name)
        if suffix in PICTURES:
            stems[stem].append(name)
        elif suffix in rule.suffixes:
            texts[stem + suffix] = names[name]
    for name in sorted(name for group in stems.values() for name in group):
        key = _text_of(name, stems[split_suffix(name)[0]], texts.keys(), rule)
        if isinstance(key, Remark | Unusable):
            yield replace(key, place=shown(folder + name))
        else:
            yield name, names[name], texts[key] if key else None
    for key in texts:
        # A README.json or a metadata.json is no caption that lost its picture.
        if not key.endswith(".json") and not _has_picture(key, stems):
            yield Remark(shown(folder + key), "a caption file without its picture")


def _text_of(
    name: str, group: list[str], texts: KeysView[str], rule: PairRule
) -> str | Remark | Unusable | None:
    """The caption file of `name`, one of the pictures `group` that share a stem; None: there is none."""
    stem, suffix = split_suffix(name)
    if suffix != JXL and any(split_suffix(other)[1] == JXL for other in group):
        return Remark("", "left out: its .jxl twin is read in its place")
    own = next((name + end for end in rule.suffixes if name + end in texts), None)
    common = next((stem + end for end in rule.suffixes if stem + end in texts), None)
    if own or not common or len(group) == 1 or suffix == JXL or rule.is_shared:
        return own or common
    others = ", ".join(other for other in group if other != name)
    return Unusable(
        "", shown(f"{common} may be its caption or that of {others}: rename it {name}{rule.suffixes[0]}")
    )


def _has_picture(key: str, stems: dict[str, list[str]]) -> bool:
    stem, _ = split_suffix(key)
    return stem in stems or stem in stems.get(split_suffix(stem)[0], ())
