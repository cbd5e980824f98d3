"""The text encoder's states of a caption: its tokens without padding, and one more."""

from flowloom.data.cache.records.base import RecordKind

KIND = RecordKind("caption-states", ("T", "C"))
