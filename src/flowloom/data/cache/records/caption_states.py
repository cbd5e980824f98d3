"""A caption as a text encoder states it: its real tokens and one more."""

from flowloom.data.cache.records.base import RecordKind

KIND = RecordKind("caption-states", ("T", "C"))
