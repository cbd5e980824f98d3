"""Operations on captions: pure functions of one caption."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from flowloom.datasets.captions.formats import is_tags

Tag = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=500, pattern=r"^[^,\r\n\x00]+$")
]
LONGEST_QUOTE, TAGS_NAMED = 60, 5
"""Number of letters and tags in the title of an edit."""
Tags = Annotated[list[Tag], Field(min_length=1, max_length=1000)]


class _Operation(BaseModel):
    model_config = ConfigDict(extra="forbid")


class AddTags(_Operation):
    """Add missing tags at the start or end, also of prose."""

    kind: Literal["add"]
    tags: Tags = Field(examples=[["fox", "snow"]])
    where: Literal["start", "end"] = "end"

    def title(self) -> str:
        """The title in the list of edits."""
        return f"Added {_named(self.tags)} at the {self.where}"

    def apply(self, line: str) -> str:
        """The changed caption."""
        tags = split(line)
        known = {tag.casefold() for tag in tags}
        new = [tag for tag in dict.fromkeys(self.tags) if tag.casefold() not in known]
        return joined([*new, *tags] if self.where == "start" else [*tags, *new], line)


class RemoveTags(_Operation):
    """Remove tags, ignoring letter case."""

    kind: Literal["remove"]
    tags: Tags = Field(examples=[["fox", "snow"]])

    def title(self) -> str:
        """The title in the list of edits."""
        return f"Removed {_named(self.tags)}"

    def apply(self, line: str) -> str:
        """The changed caption."""
        removed = {tag.casefold() for tag in self.tags}
        return joined([tag for tag in split(line) if tag.casefold() not in removed], line)


class ReplaceTag(_Operation):
    """Replace a tag, without creating a duplicate."""

    kind: Literal["replace"]
    tag: Tag = Field(examples=["grey fur"])
    by: Tag = Field(examples=["silver fur"])

    def title(self) -> str:
        """The title in the list of edits."""
        return f"Replaced the tag {_quoted(self.tag)} with {_quoted(self.by)}"

    def apply(self, line: str) -> str:
        """The changed caption."""
        old, new = self.tag.casefold(), self.by.casefold()
        tags: list[str] = []
        for tag in split(line):
            tag = self.by if tag.casefold() == old else tag
            if tag.casefold() != new or new not in {known.casefold() for known in tags}:
                tags.append(tag)
        return joined(tags, line)


class ReorderTags(_Operation):
    """Move tags to the front, keep or sort the others, and drop duplicates. Prose stays unchanged."""

    kind: Literal["reorder"]
    first: list[Tag] = Field([], max_length=1000, examples=[["fox"]])
    rest: Literal["as_is", "sorted"] = "as_is"
    drop_repeated: bool = True

    def title(self) -> str:
        """The title in the list of edits."""
        rest = " and sorted the rest" if self.rest == "sorted" else ""
        return (f"Moved {_named(self.first)} to the front" if self.first else "Reordered the tags") + rest

    def apply(self, line: str) -> str:
        """The changed caption."""
        if not is_tags(line):
            return line
        places = {tag.casefold(): place for place, tag in enumerate(self.first)}
        tags = split(line)
        if self.drop_repeated:
            tags = list({tag.casefold(): tag for tag in reversed(tags)}.values())[::-1]
        is_sorted = self.rest == "sorted"
        order = sorted(tags, key=lambda tag: tag.casefold() if is_sorted else "")
        return joined(sorted(order, key=lambda tag: places.get(tag.casefold(), len(places))), line)


class ReplaceText(_Operation):
    """Replace a text anywhere in a caption."""

    kind: Literal["replace_text"]
    text: str = Field(min_length=1, max_length=10_000, examples=["an image of "])
    by: str = Field("", max_length=10_000)

    def title(self) -> str:
        """The title in the list of edits."""
        if not self.by:
            return f"Removed the text {_quoted(self.text)}"
        return f"Replaced {_quoted(self.text)} with {_quoted(self.by)}"

    def apply(self, line: str) -> str:
        """The changed caption."""
        return line.replace(self.text, self.by)


class SetText(_Operation):
    """Set the same caption, for example for images without one."""

    kind: Literal["set"]
    text: str = Field(max_length=10_000, examples=["a fox"])

    def title(self) -> str:
        """The title in the list of edits."""
        return f"Set the caption to {_quoted(self.text)}" if self.text else "Cleared the captions"

    def apply(self, line: str) -> str:  # noqa: ARG002 -- the old caption does not matter
        """The changed caption."""
        return self.text


Operation = Annotated[
    AddTags | RemoveTags | ReplaceTag | ReorderTags | ReplaceText | SetText, Field(discriminator="kind")
]


def applied(operation: Operation, caption: str) -> str:
    """`caption` with the operation applied to each of its lines."""
    if isinstance(operation, ReplaceText | SetText):
        return operation.apply(caption)
    return "\n".join(operation.apply(line) for line in caption.split("\n"))


def _quoted(text: str) -> str:
    short = " ".join(text.split())
    return f"“{short if len(short) <= LONGEST_QUOTE else short[:LONGEST_QUOTE] + ' …'}”"


def _named(tags: list[str]) -> str:
    more = f" and {len(tags) - TAGS_NAMED} more" if len(tags) > TAGS_NAMED else ""
    return ", ".join(map(_quoted, tags[:TAGS_NAMED])) + more


def split(line: str) -> list[str]:
    """The tags of a caption."""
    return [tag for part in line.split(",") if (tag := part.strip())]


def joined(tags: list[str], before: str) -> str:
    """The tags as a caption, or `before` with its spaces if the tags are the same."""
    return before if tags == split(before) else ", ".join(tags)
