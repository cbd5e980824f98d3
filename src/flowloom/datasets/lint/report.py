"""The report of a lint, as plain values for text, JSON and the HTML page."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple

from flowloom.datasets.lint.near_duplicates import WINDOW
from flowloom.printable import printable
from flowloom.storage.base import shown

Level = Literal["error", "warning", "note"]


class Kind(NamedTuple):
    """A kind of finding."""

    level: Level
    title: str
    hint: str


FIX = "'flowloom dataset fix' "
KINDS: dict[str, Kind] = {
    "broken_row": Kind("error", "Broken rows", FIX + "repairs readable rows and removes the others."),
    "unreadable": Kind("error", "Unreadable images", "They are left out: replace, rename or remove them."),
    "missing_file": Kind("error", "Missing files", "Check --images; " + FIX + "removes the rows."),
    "damaged_file": Kind("error", "Damaged images", FIX + "removes the rows; or download the files again."),
    "wrong_size": Kind("error", "Wrong recorded sizes", FIX + "writes the sizes of the files."),
    "clip_end": Kind("error", "Clips beyond their videos", "Build the JSONL again, or shorten num_frames."),
    "cut_video": Kind("warning", "Incomplete videos", "Download them again; builds trim their clips."),
    "short_clip": Kind("warning", "Left out by length", "Add a smaller number to video.num_frames."),
    "duplicate": Kind("warning", "Exact duplicates", FIX + "keeps the first of each group."),
    "near_duplicate": Kind("warning", "Near duplicates", FIX + "--near keeps the largest of each group."),
    "small": Kind("warning", "Too small for their buckets", "Lower the resolution, or use larger files."),
    "left_out": Kind("warning", "Left out by aspect ratio", "Raise dataloader.ratio_cutoff, or crop them."),
    "empty_caption": Kind("warning", "Empty captions", "Caption them, or " + FIX + "--drop-empty."),
    "long_caption": Kind("warning", "Over-long captions", "Shorten them, or raise model.t5_max_length."),
    "encoding": Kind("warning", "Damaged text", FIX + "repairs wrongly decoded text."),
    "repeated_row": Kind(
        "note", "Repeated rows", "Ignore this if they are intended, such as Kohya's repeats."
    ),
    "variable_rate": Kind("note", "Variable frame rate", "Training resamples them by their times."),
    "no_sound": Kind("note", "Videos without sound", "This matters only for models with sound."),
    "no_weight": Kind("note", "Rows without weight", "loss_weight 0 has no effect: remove the rows."),
}
"""In the order of the report."""


@dataclass(frozen=True)
class Finding:
    """A finding about one row."""

    kind: str
    line: int
    filename: str
    message: str
    group: int | None = None
    """Rows of one group are copies of one another."""
    amount: float | None = None
    """For sorting: the upscaling factor, or the number of tokens."""

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
    """Full batches."""
    remainder: int
    """Rows of the last, incomplete batch."""


@dataclass
class Distribution:
    """The distribution of a number over the rows."""

    minimum: int
    median: int
    p95: int
    """95th percentile."""
    maximum: int
    bars: list[tuple[int, int]] = field(default_factory=list)
    """Lower edge and number of rows of each bar; the last bar includes all larger values."""


@dataclass
class CaptionStats:
    """Statistics of the captions."""

    num_rows: int
    num_tag_based: int
    num_empty: int
    num_distinct: int
    characters: Distribution | None = None
    tokens: Distribution | None = None
    """T5 tokens, including the end token; None without a tokenizer."""
    tags_per_row: Distribution | None = None
    num_distinct_tags: int = 0
    num_tags_used_once: int = 0
    top_tags: list[tuple[str, int]] = field(default_factory=list)


@dataclass
class Report:
    """The report on one JSONL."""

    path: str
    images: str
    num_rows: int
    """Lines that are not empty."""
    num_usable: int
    """Rows that training reads."""
    num_decoded: int
    """Images that were opened."""
    num_not_checked: int
    """Images at URLs, which are downloaded only on request."""
    batch_size: int
    resolutions: list[int]
    max_tokens: int
    seconds: float
    findings: list[Finding]
    buckets: list[BucketUse]
    captions: CaptionStats
    num_crowded: int = 0
    """Images that share part of their fingerprint with too many others to compare all pairs."""

    def add_unreadable(self, files: list[tuple[str, str]]) -> None:
        """Add files of the folder that did not become a row: (name, reason) of each."""
        self.findings += [Finding("unreadable", 0, name, reason) for name, reason in files]
        self.num_rows += len(files)

    @property
    def crowded_message(self) -> str:
        """The message about `num_crowded`; "" if it is 0."""
        if not self.num_crowded:
            return ""
        return (
            f"{self.num_crowded:,} images share part of their fingerprint with more than {WINDOW:,} others, "
            f"and were compared with only {WINDOW:,} neighbours: near duplicates among them may be missing. "
            "Lint the dataset in parts to compare all pairs."
        )

    @property
    def counts(self) -> dict[str, int]:
        """The number of findings of each kind, in the order of KINDS."""
        counts = Counter(finding.kind for finding in self.findings)
        return {kind: counts[kind] for kind in KINDS if counts[kind]}

    def count(self, level: Level) -> int:
        """The number of findings of a level."""
        return sum(count for kind, count in self.counts.items() if KINDS[kind].level == level)

    def of(self, kind: str) -> list[Finding]:
        """The findings of a kind: by group, then by decreasing amount, then by line."""
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
        return {**levels, "counts": self.counts, **asdict(self), "crowded_message": self.crowded_message}
