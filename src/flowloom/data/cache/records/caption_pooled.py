"""One vector of a caption, such as CLIP's pooled output."""

from flowloom.data.cache.records.base import RecordKind

KIND = RecordKind("caption-pooled", ("C",))
