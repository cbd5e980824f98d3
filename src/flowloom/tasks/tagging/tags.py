"""From a tagger's probabilities to tags: thresholds, order, spelling, by the user's rules."""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flowloom.errors import WeightsError
from flowloom.tasks.tag import TagConfig
from flowloom.tasks.tagging.merging import Description, key_of

GENERAL, CHARACTER, RATING = 0, 4, 9
"""Categories in selected_tags.csv: Danbooru's, and SmilingWolf's for ratings."""
CHARACTER_LEAST = 0.15
"""Minimum of the threshold: below it, the widest gap between probabilities of characters means nothing."""
FACES = frozenset(
    (
        *("0_0", "(o)_(o)", "+_+", "+_-", "._.", "<o>_<o>", "<|>_<|>", "=_=", ">_<", "3_3", "6_9"),
        *(">_o", "@_@", "^_^", "o_o", "u_u", "x_x", "|_|", "||_||"),
    )
)
"""Emoticons, whose underscores are kept."""
_SERIES = re.compile(r"(.+?)[_ ]\((.+)\)")


@dataclass(frozen=True)
class Labels:
    """The meaning of a tagger's outputs."""

    names: tuple[str, ...]
    categories: NDArray[np.int64]

    def of(self, category: int) -> NDArray[np.int64]:
        """Numbers of the outputs of one category."""
        return np.flatnonzero(self.categories == category)


def read_labels(path: Path) -> Labels:
    """The rows of a selected_tags.csv, in the order of the model's outputs.

    Raises:
        WeightsError: it is missing, or not such a file.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise WeightsError(
            f"{path}: not readable: {error}. It belongs to the tagger's model.onnx."
        ) from error
    names: list[str] = []
    categories: list[int] = []
    for number, row in enumerate(rows, start=2):
        name, category = row.get("name"), row.get("category")
        if not name or category not in ("0", "4", "9"):
            raise WeightsError(
                f"{path}:{number}: needs a name and a category 0, 4 or 9, not {name!r:.60} and "
                f"{category!r:.60}: not the selected_tags.csv of a WD14 tagger."
            )
        names.append(name)
        categories.append(int(category))
    if not names:
        raise WeightsError(f"{path}: has no tags. Download it again.")
    return Labels(tuple(names), np.array(categories))


def widest_gap(probabilities: NDArray[np.float32]) -> float:
    """The threshold in the middle of the widest gap between probabilities.

    Maximum cut thresholding: Largeron, Moulin and Gery, "MCut: a thresholding strategy for multi-label
    classification", IDA 2012.
    """
    falling = np.sort(probabilities)[::-1]
    if len(falling) < 2:
        return 0.5
    at = int((falling[:-1] - falling[1:]).argmax())
    return float(falling[at] + falling[at + 1]) / 2


class TagRules:
    """The rules of `config` for the outputs of one tagger."""

    def __init__(self, labels: Labels, config: TagConfig):
        self.labels, self.config = labels, config
        self._black = {key_of(tag) for tag in config.blacklist}
        self._first = {key_of(tag): rank for rank, tag in enumerate(config.first_tags)}
        self._otherwise = {key_of(old): new.strip() for old, new in config.replacements.items()}
        self._of = {category: labels.of(category) for category in (GENERAL, CHARACTER, RATING)}

    def describe(self, probabilities: NDArray[np.float32]) -> Description:
        """The tags of one image, with probabilities (T,)."""
        config = self.config
        general = self._chosen(GENERAL, probabilities)
        if config.max_tags:
            general = general[np.argsort(-probabilities[general], kind="stable")][: config.max_tags]
        groups = [self._spelled(general, probabilities)]
        if config.characters != "off":
            characters = self._spelled(self._chosen(CHARACTER, probabilities), probabilities)
            groups.insert(0 if config.characters == "first" else 1, characters)
        tags = [tag for group in groups for tag in group]
        tags.sort(key=lambda tag: self._first.get(key_of(tag), len(self._first)))
        tags = self._rated(tags, probabilities)
        tags = list(dict.fromkeys(tags))
        return Description(", ".join(tags), tuple(tags), self._scores(probabilities))

    def _chosen(self, category: int, probabilities: NDArray[np.float32]) -> NDArray[np.int64]:
        """Numbers of the outputs above the category's threshold."""
        numbers = self._of[category]
        given = probabilities[numbers]
        if category == CHARACTER:
            limit = self.config.character_threshold
            if self.config.character_mcut:
                limit = max(CHARACTER_LEAST, widest_gap(given))
        else:
            limit = widest_gap(given) if self.config.general_mcut else self.config.general_threshold
        return numbers[given >= limit]

    def _spelled(self, numbers: NDArray[np.int64], probabilities: NDArray[np.float32]) -> list[str]:
        """Tags in their order, as they are written; without those on the blacklist."""
        if self.config.order == "score":
            numbers = numbers[np.argsort(-probabilities[numbers], kind="stable")]
        names = [self.labels.names[number] for number in numbers.tolist()]  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
        tags = [tag for name in names for tag in self._spellings(name)]  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
        return sorted(tags, key=str.lower) if self.config.order == "alphabet" else tags

    def _spellings(self, name: str) -> list[str]:
        if key_of(name) in self._black:
            return []
        if key_of(name) in self._otherwise:
            new = self._otherwise[key_of(name)]
            return [new] if new else []
        parts = [name]
        series = _SERIES.fullmatch(name)
        if self.config.expand_characters and series and name not in FACES:
            parts = [series[1], series[2]]
        return [self._spelling(part) for part in parts if key_of(part) not in self._black]

    def _spelling(self, name: str) -> str:
        return name.replace("_", " ") if self.config.replace_underscores and name not in FACES else name

    def _rated(self, tags: list[str], probabilities: NDArray[np.float32]) -> list[str]:
        ratings = self._of[RATING]
        if self.config.rating == "off" or not len(ratings):
            return tags
        best = self.labels.names[int(ratings[probabilities[ratings].argmax()])]
        rating = [f"{self.config.rating_prefix}{best}"]
        return rating + tags if self.config.rating == "first" else tags + rating

    def _scores(self, probabilities: NDArray[np.float32]) -> dict[str, float]:
        """The forty most probable outputs, written or not, to choose the threshold by."""
        best = np.argsort(-probabilities, kind="stable")[:40]
        return {self.labels.names[number]: float(probabilities[number]) for number in best}
