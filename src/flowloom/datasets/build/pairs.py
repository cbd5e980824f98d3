"""Which caption file belongs to which picture of a folder."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from flowloom.datasets.build.items import JXL, PICTURES, Remark, Unusable, shown

Entry = TypeVar("Entry")

MASKS = re.compile(r".*-(mask|cond)label\d*", re.DOTALL)
"""The stems of OneTrainer's masks and conditioning images; several of one image are numbered."""
MASK = "not trained: a mask by its name (-masklabel)"
SPELLED = "paired with a caption file of another letter case or Unicode form"


@dataclass(frozen=True)
class PairRule:
    """What counts as a caption file."""

    suffixes: tuple[str, ...]
    """The first one that is there and not empty wins."""
    is_shared: bool = False
    """Kohya's rule: pictures of the same name and other suffixes share the caption."""


def split_suffix(name: str) -> tuple[str, str]:
    """Stem and suffix of a file name; the suffix in lower case, with its dot."""
    stem, dot, suffix = name.rpartition(".")
    return (stem, f".{suffix.lower()}") if dot and stem else (name, "")


def folded(name: str) -> str:
    """`name` without what differs between file systems: letter case and the Unicode form of accents."""
    return unicodedata.normalize("NFC", name).casefold()


def is_mask(stem: str) -> bool:
    """Whether a picture of this stem is another one's mask."""
    return bool(MASKS.fullmatch(stem))


def pair(
    names: dict[str, Entry],
    folder: str,
    rule: PairRule,
    is_empty: Callable[[Entry], bool] = lambda _: False,
) -> Iterator[tuple[str, Entry, Entry | None] | Unusable | Remark]:
    """(name, picture, its caption file or None) of each picture among the `names` of one folder, in order.

    `a.jpg.txt` belongs to `a.jpg` alone; `a.txt` to the only picture that is named `a`.

    Args:
        folder: prefix of the names in reports: "" or "sub/".
        is_empty: of several caption files, an empty one is passed over.
    """
    pairing = _Pairing(names, rule, is_empty)
    for name in pairing.pictures():
        for found in pairing.of(name):
            yield replace(found, place=shown(folder + found.place)) if not isinstance(found, tuple) else found
    for text in pairing.left_over():
        # A README.json or a metadata.json is no caption that lost its picture.
        is_json = text.lower().endswith(".json")
        why = "not an image or caption file (.json)" if is_json else "a caption file without its picture"
        yield Remark(shown(folder + text), why)


class _Pairing(Generic[Entry]):
    """The pictures and caption files of one folder."""

    def __init__(self, names: dict[str, Entry], rule: PairRule, is_empty: Callable[[Entry], bool]):
        self.names = names
        self.rule = rule
        self._is_empty = is_empty
        self._stems: dict[str, list[str]] = defaultdict(list)
        self._texts: dict[str, str] = {}
        """Caption files by their name with the suffix in lower case."""
        self._used: set[str] = set()
        self._spellings: dict[str, list[str]] | None = None
        for name in sorted(names):
            stem, suffix = split_suffix(name)
            if suffix in PICTURES:
                self._stems[stem].append(name)
            elif suffix in rule.suffixes:
                self._texts.setdefault(stem + suffix, name)

    def pictures(self) -> list[str]:
        """The names of all pictures, in order."""
        return sorted(name for group in self._stems.values() for name in group)

    def of(self, name: str) -> Iterator[tuple[str, Entry, Entry | None] | Unusable | Remark]:
        """The picture `name` with its caption file, and what is to be said of it."""
        stem, suffix = split_suffix(name)
        group = self._stems[stem]
        if is_mask(stem):
            yield Remark(name, MASK)
            return
        if suffix != JXL and any(split_suffix(other)[1] == JXL for other in group):
            yield Remark(name, "left out: its .jxl twin is read in its place")
            return
        own, common = self._files(name), self._files(stem)
        is_alone = len(group) == 1 or suffix == JXL or self.rule.is_shared
        if common and not own and not is_alone:
            self._used.update(common)
            others = ", ".join(other for other in group if other != name)
            wanted = f"{name}{self.rule.suffixes[0]}"
            yield Unusable(
                name, shown(f"{common[0]} may be its caption or that of {others}: rename it {wanted}")
            )
            return
        # By suffix first: a text that people edit comes before what a downloader wrote beside it.
        order = self.rule.suffixes.index
        texts = sorted(own + common if is_alone else own, key=lambda text: order(split_suffix(text)[1]))
        chosen = next(
            (text for text in texts if not self._is_empty(self.names[text])), texts[0] if texts else ""
        )
        self._used.update(texts)
        yield from self._remarks(name, stem, chosen, texts)
        yield name, self.names[name], self.names[chosen] if chosen else None

    def _remarks(self, name: str, stem: str, chosen: str, texts: list[str]) -> Iterator[Remark]:
        first = split_suffix(chosen)[1]
        for text in (text for text in texts if text != chosen):
            suffix = split_suffix(text)[1]
            if self._is_empty(self.names[text]):
                yield Remark(text, f"not read: empty, and the image has a {first} file")
            elif suffix == first:
                yield Remark(text, f"not read: the image has a {suffix} file of its whole name")
            else:
                yield Remark(text, f"not read: the image has a {first} file, which comes before {suffix}")
        if chosen and not chosen.startswith((f"{name}.", f"{stem}.")):
            yield Remark(name, SPELLED)

    def _files(self, stem: str) -> list[str]:
        """The caption files of a stem, in the order of the suffixes."""
        keys = [stem + suffix for suffix in self.rule.suffixes]
        exact = [self._texts[key] for key in keys if key in self._texts]
        return exact or [text for key in keys for text in self._spelled(key)]

    def _spelled(self, key: str) -> list[str]:
        """The one caption file without a picture whose name differs from `key` in spelling only."""
        if self._spellings is None:
            self._spellings = defaultdict(list)
            for other, text in self._texts.items():
                if not self._has_picture(other):
                    self._spellings[folded(other)].append(text)
        found = self._spellings.get(folded(key), [])
        return found if len(found) == 1 else []

    def _has_picture(self, key: str) -> bool:
        stem, _ = split_suffix(key)
        return stem in self._stems or stem in self._stems.get(split_suffix(stem)[0], ())

    def left_over(self) -> list[str]:
        """Caption files that belong to no picture."""
        return [
            text for key, text in self._texts.items() if text not in self._used and not self._has_picture(key)
        ]
