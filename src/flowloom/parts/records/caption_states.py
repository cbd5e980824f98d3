"""A caption as a text encoder states it: its real tokens and one more."""

from flowloom.parts.records.base import RecordKind

KIND = RecordKind("caption-states", ("T", "C"))
