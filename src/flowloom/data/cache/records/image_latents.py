"""An image encoded by a 2-D autoencoder."""

from flowloom.data.cache.records.base import RecordKind

KIND = RecordKind("image-latents", ("C", "h", "w"), has_spread=True)
