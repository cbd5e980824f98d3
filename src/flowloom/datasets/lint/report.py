"""What a lint found: plain values, for text, JSON and the page alike."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple

from flowloom.datasets.lint.near import WINDOW
from flowloom.printable import printable
from flowloom.storage.base import shown

Level = Literal["error", "warning", "note"]


class Kind(NamedTuple):
    """A sort of finding."""

    level: Level
    title: str
    """Of many."""
    hint: str
    """What to do."""


FIX = "'flowloom dataset fix' "
KINDS: dict[str, Kind] = {
    "broken_row": Kind("error", "Broken rows", FIX + "mends what it can read and takes the rest out."),
    "unreadable": Kind("error", "Unreadable images", "They are left out: replace, rename or remove them."),
    "missing_file": Kind("error", "Missing files", "Check --images; " + FIX + "takes the rows out."),
    "damaged_file": Kind("error", "Damaged pictures", FIX + "takes the rows out; or fetch the files again."),
    "wrong_size": Kind("error", "Wrong recorded sizes", FIX + "writes the sizes that the files have."),
    "same_file": Kind("warning", "Exact duplicates", FIX + "keeps the first of each."),
    "alike": Kind("warning", "Near duplicates", FIX + "--near keeps the largest of each group."),
    "small": Kind("warning", "Too small for their buckets", "Lower the resolution, or find larger files."),
    "left_out": Kind("warning", "Left out by shape", "Raise dataloader.ratio_cutoff, or crop them."),
    "empty_caption": Kind("warning", "Empty captions", "Caption them, or " + FIX + "--drop-empty."),
    "long_caption": Kind("warning", "Over-long captions", "Shorten them, or raise model.t5_max_length."),
    "encoding": Kind("warning", "Damaged text", FIX + "mends what was decoded wrongly."),
    "repeated_row": Kind("note", "Repeated rows", "On purpose, as Kohya's repeats are? Then nothing."),
    "no_weight": Kind("note", "Rows without weight", "loss_weight 0 trains nothing: take them out."),
}
"""In the order in which they are told."""


@dataclass(frozen=True)
class Finding:
    """One thing about one row."""

    kind: str
    line: int
    filename: str
    message: str
    group: int | None = None
    """Rows of one group are copies of one another."""
    amount: float | None = None
    """For sorting: how far it is upscaled, how many tokens it has."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "filename", shown(self.filename))
        object.__setattr__(self, "message", printable(self.message))


@dataclass(frozen=True)
class BucketUse:
    """A bucket and its rows."""

    width: int
    height: int
    rows: int
    batches: int
    """Whole ones."""
    remainder: int
    """Rows of the last, short batch."""


@dataclass
class Spread:
    """How a number is spread over rows."""

    least: int
    median: int
    most_have: int
    """95 of 100 rows have at most this."""
    most: int
    bars: list[tuple[int, int]] = field(default_factory=list)
    """Lower edge and rows of each class; the last one has what is beyond it, too."""


@dataclass
class CaptionStats:
    """What the captions are like."""

    rows: int
    tag_based: int
    empty: int
    distinct: int
    characters: Spread | None = None
    tokens: Spread | None = None
    """In T5's tokens, the end included; None where no tokenizer was given."""
    tags_per_row: Spread | None = None
    distinct_tags: int = 0
    tags_once: int = 0
    top_tags: list[tuple[str, int]] = field(default_factory=list)


@dataclass
class Report:
    """Everything that was found in one JSONL."""

    path: str
    images: str
    rows: int
    """Lines that are not empty."""
    usable: int
    """Rows that training reads."""
    looked_at: int
    """Pictures that were decoded."""
    not_looked_at: int
    """Pictures at URLs, which are only fetched when asked for."""
    batch_size: int
    resolutions: list[int]
    max_tokens: int
    seconds: float
    findings: list[Finding]
    buckets: list[BucketUse]
    captions: CaptionStats
    crowded: int = 0
    """Pictures with something in common with so many that near duplicates among them may be missing."""

    def add_unreadable(self, found: list[tuple[str, str]]) -> None:
        """Count what lies in the folder and did not become a row: (name, reason) of each."""
        self.findings += [Finding("unreadable", 0, name, reason) for name, reason in found]
        self.rows += len(found)

    @property
    def crowded_text(self) -> str:
        """What to say of `crowded`; empty where there is nothing to say."""
        if not self.crowded:
            return ""
        return (
            f"{self.crowded:,} pictures share part of their fingerprint with more than {WINDOW:,} others, "
            f"and were compared with {WINDOW:,} neighbours only: near duplicates among them may be missing. "
            "Lint the set in parts to compare all."
        )

    @property
    def counts(self) -> dict[str, int]:
        """Findings by kind, in KINDS' order."""
        found = Counter(finding.kind for finding in self.findings)
        return {kind: found[kind] for kind in KINDS if found[kind]}

    def count(self, level: Level) -> int:
        """How many findings of a level there are."""
        return sum(count for kind, count in self.counts.items() if KINDS[kind].level == level)

    def of(self, kind: str) -> list[Finding]:
        """The findings of a kind: the largest amount first, copies together, else by line."""
        return sorted(
            (finding for finding in self.findings if finding.kind == kind),
            key=lambda finding: (finding.group or 0, -(finding.amount or 0), finding.line),
        )

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        levels = {
            "errors": self.count("error"),
            "warnings": self.count("warning"),
            "notes": self.count("note"),
        }
        return {**levels, "counts": self.counts, **asdict(self), "crowded_text": self.crowded_text}
