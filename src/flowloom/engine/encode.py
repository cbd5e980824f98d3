"""Images and captions to latents and text states, encoded once where memory allows."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from flowloom.data.loader import LoadedBatch, Sample
from flowloom.nn.patches import pack
from flowloom.parts.families.autoencoder import Autoencoder
from flowloom.parts.families.text_encoder import TextEncoder
from flowloom.spec.run import CacheSection, RunConfig


class MemoryCache:
    """Tensors by key on the CPU, until a number of bytes is reached; then no more are taken in.

    Nothing is ever dropped: an epoch reads every row once, so the longest unused is the next one needed,
    and the loader may rely on what it was told is here.
    """

    def __init__(self, limit_bytes: int):
        self.free_bytes = limit_bytes
        self._tensors: dict[Hashable, Tensor] = {}

    def __contains__(self, key: Hashable) -> bool:
        return key in self._tensors

    def get(self, key: Hashable) -> Tensor | None:
        """The tensor under `key`, or None."""
        return self._tensors.get(key)

    def put(self, key: Hashable, tensor: Tensor) -> None:
        """Keep `tensor`, a CPU tensor, if there is room for it."""
        if key not in self._tensors and tensor.nbytes <= self.free_bytes:
            # A slice of a batch would keep the whole batch alive.
            self._tensors[key] = tensor.clone()
            self.free_bytes -= tensor.nbytes


class Encoded(NamedTuple):
    """A loaded batch as the network sees it, still on the CPU."""

    latents: Tensor
    """(B, L, D) float32 packed."""
    texts: list[Tensor]
    """B tensors (T_i, C)."""
    text_lengths: list[int]
    """What each caption itself needs of its tensor: all of it, but for FLOW's mask."""


class Encoders:
    """The frozen networks in front of the trained one.

    On a CPU every image and caption is encoded alone: the size of an encoder's batch changes the last
    bits of its result, and a resumed run must see the same latents as one that never stopped.
    """

    def __init__(
        self, autoencoder: Autoencoder, text_encoder: TextEncoder, config: RunConfig, device: torch.device
    ):
        self.autoencoder = autoencoder
        self.text_encoder = text_encoder
        self.device = device
        self.dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self.max_length = config.model.t5_max_length
        self.minibatch = 1 if device.type == "cpu" else config.training.cache_minibatch
        self.union_mask = config.objective.mask_mode == "flow_union"
        self.keeps: CacheSection = config.cache
        self.cache = MemoryCache(config.cache.limit_mib * 2**20)

    def needs_pixels(self, row: int, size: tuple[int, int]) -> bool:
        """Whether the loader must read the image of `row` for a bucket of `size` pixels."""
        return self.keeps.latents == "off" or ("latents", row, size) not in self.cache

    @torch.no_grad()
    def encode(self, batch: LoadedBatch) -> Encoded:
        """Latents and text states of every sample of `batch`."""
        captions = [sample.caption for sample in batch.samples]
        if self.union_mask:
            # FLOW shows each sample what T5 made of padding: that depends on who else is in the batch.
            texts = self.text_encoder.encode(captions, self.max_length, is_trimmed=False)
            counts = self.text_encoder.count_tokens(captions)
            lengths = [min(count + 1, self.max_length) for count in counts]
            return Encoded(self._latents(batch), [states.cpu() for states in texts], lengths)
        texts = self.texts(captions)
        return Encoded(self._latents(batch), texts, [len(states) for states in texts])

    def _latents(self, batch: LoadedBatch) -> Tensor:
        keys = [("latents", sample.row, batch.size) for sample in batch.samples]
        known = [self.cache.get(key) for key in keys]
        missing = [i for i, latents in enumerate(known) if latents is None]
        for start in range(0, len(missing), self.minibatch):
            chunk = missing[start : start + self.minibatch]
            fresh = self._encode_images([batch.samples[i] for i in chunk])
            for i, latents in zip(chunk, fresh, strict=True):
                known[i] = latents
                if self.keeps.latents == "memory":
                    self.cache.put(keys[i], latents)
        return torch.stack([latents for latents in known if latents is not None])

    def _encode_images(self, samples: Sequence[Sample]) -> Tensor:
        pixels = np.stack([_pixels(sample) for sample in samples])
        images = torch.from_numpy(pixels).to(self.device).permute(0, 3, 1, 2)
        latents = self.autoencoder.encode(images.to(self.dtype) / 127.5 - 1)
        return pack(latents.float()).cpu()

    @torch.no_grad()
    def texts(self, captions: Sequence[str]) -> list[Tensor]:
        """The encoder states of each caption, (T_i, C), trimmed to its real tokens and one more."""
        found = {caption: self.cache.get(("text", caption)) for caption in dict.fromkeys(captions)}
        missing = [caption for caption, states in found.items() if states is None]
        for start in range(0, len(missing), self.minibatch):
            chunk = missing[start : start + self.minibatch]
            for caption, states in zip(chunk, self.text_encoder.encode(chunk, self.max_length), strict=True):
                found[caption] = states.cpu()
                if self.keeps.text == "memory":
                    self.cache.put(("text", caption), states.cpu())
        return [states for caption in captions if (states := found[caption]) is not None]


def _pixels(sample: Sample) -> np.ndarray:
    assert sample.pixels is not None, "the loader reads every image that is not cached"
    return sample.pixels
