"""A clip encoded by a 3-D autoencoder: F latent frames of h x w planes."""

from flowloom.data.cache.records.base import RecordKind

KIND = RecordKind("video-latents", ("C", "F", "h", "w"), has_spread=True)
