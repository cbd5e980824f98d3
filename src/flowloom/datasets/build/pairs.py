"""Pair the images of a folder with their caption files."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from flowloom.datasets.build.items import Remark, Unusable, shown
from flowloom.image_suffixes import IMAGE_SUFFIXES, JXL_SUFFIX, VIDEO_SUFFIXES

File = TypeVar("File")

MASKS = re.compile(r".*-(mask|cond)label\d*", re.DOTALL)
"""Stems of OneTrainer's masks and conditioning images; those of one image may be numbered."""
MASK = "not trained: a mask by its name (-masklabel)"
SPELLED = "paired with a caption file whose name has another letter case or Unicode form"


@dataclass(frozen=True)
class PairRule:
    """The caption files of an image."""

    suffixes: tuple[str, ...]
    """The first one that exists and is not empty is used."""
    is_shared: bool = False
    """Kohya's rule: images of the same stem share the caption."""
    with_videos: bool = False
    """Videos are paired with captions, too."""

    def is_media(self, suffix: str) -> bool:
        """True for files that are paired."""
        return suffix in IMAGE_SUFFIXES or (self.with_videos and suffix in VIDEO_SUFFIXES)


def split_suffix(name: str) -> tuple[str, str]:
    """Stem and suffix of a file name; the suffix in lower case, with its dot."""
    stem, dot, suffix = name.rpartition(".")
    return (stem, f".{suffix.lower()}") if dot and stem else (name, "")


def folded(name: str) -> str:
    """`name` without letter case and Unicode form, which differ between file systems."""
    return unicodedata.normalize("NFC", name).casefold()


def is_mask(stem: str) -> bool:
    """True if an image of this stem is a mask of another one."""
    return bool(MASKS.fullmatch(stem))


def pair(
    names: dict[str, File],
    folder: str,
    rule: PairRule,
    is_empty: Callable[[File], bool] = lambda _: False,
) -> Iterator[tuple[str, File, File | None] | Unusable | Remark]:
    """(name, image, caption file or None) of each image among the `names` of one folder, in order.

    `a.jpg.txt` belongs only to `a.jpg`; `a.txt` to the only image of stem `a`.

    Args:
        folder: prefix of the names in reports: "" or "sub/".
        is_empty: an empty caption file is used only if there is no other.
    """
    pairing = _Pairing(names, rule, is_empty)
    for name in pairing.images():
        for paired in pairing.of(name):
            is_pair = isinstance(paired, tuple)
            yield paired if is_pair else replace(paired, where=shown(folder + paired.where))
    for text in pairing.unused_texts():
        # A README.json or a metadata.json is not a caption file.
        is_json = text.lower().endswith(".json")
        reason = "not an image or caption file (.json)" if is_json else "a caption file without an image"
        yield Remark(shown(folder + text), reason)


class _Pairing(Generic[File]):
    """The images and caption files of one folder."""

    def __init__(self, names: dict[str, File], rule: PairRule, is_empty: Callable[[File], bool]):
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
            if rule.is_media(suffix):
                self._stems[stem].append(name)
            elif suffix in rule.suffixes:
                self._texts.setdefault(stem + suffix, name)

    def images(self) -> list[str]:
        """The names of all images, in order."""
        return sorted(name for group in self._stems.values() for name in group)

    def of(self, name: str) -> Iterator[tuple[str, File, File | None] | Unusable | Remark]:
        """The image `name` with its caption file, and remarks on it."""
        stem, suffix = split_suffix(name)
        # A video and an image of one stem, such as its poster frame, both have the caption.
        is_video = suffix in VIDEO_SUFFIXES
        group = [
            other for other in self._stems[stem] if (split_suffix(other)[1] in VIDEO_SUFFIXES) == is_video
        ]
        if is_mask(stem):
            yield Remark(name, MASK)
            return
        if suffix != JXL_SUFFIX and any(split_suffix(other)[1] == JXL_SUFFIX for other in group):
            yield Remark(name, "left out: its .jxl twin is read instead")
            return
        own, shared = self._files(name), self._files(stem)
        is_alone = len(group) == 1 or suffix == JXL_SUFFIX or self.rule.is_shared
        if shared and not own and not is_alone:
            self._used.update(shared)
            others = ", ".join(other for other in group if other != name)
            new_name = f"{name}{self.rule.suffixes[0]}"
            reason = f"{shared[0]} may be its caption or that of {others}: rename it {new_name}"
            yield Unusable(name, shown(reason))
            return
        # By suffix: a text file that people edit comes before a downloader's JSON.
        order = self.rule.suffixes.index
        texts = sorted(own + shared if is_alone else own, key=lambda text: order(split_suffix(text)[1]))
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
                yield Remark(text, f"not read: the image has a {suffix} file of its full name")
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
        """The only caption file without an image whose name differs from `key` in spelling."""
        if self._spellings is None:
            self._spellings = defaultdict(list)
            for other, text in self._texts.items():
                if not self._has_image(other):
                    self._spellings[folded(other)].append(text)
        spelled = self._spellings.get(folded(key), [])
        return spelled if len(spelled) == 1 else []

    def _has_image(self, key: str) -> bool:
        stem, _ = split_suffix(key)
        return stem in self._stems or stem in self._stems.get(split_suffix(stem)[0], ())

    def unused_texts(self) -> list[str]:
        """Caption files without an image."""
        return [
            text for key, text in self._texts.items() if text not in self._used and not self._has_image(key)
        ]
