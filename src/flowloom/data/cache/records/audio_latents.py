"""Audio encoded by a 1-D autoencoder: T latent frames."""

from flowloom.data.cache.records.base import RecordKind

KIND = RecordKind("audio-latents", ("C", "T"), has_spread=True)
