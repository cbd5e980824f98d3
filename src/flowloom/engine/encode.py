"""Images and captions to latents and text states, encoded once where a cache is allowed."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from flowloom.config.run import RunConfig
from flowloom.data.buckets import Bucket
from flowloom.data.cache.encodings import EncodingCaches, caches_without_disk
from flowloom.data.loader import Sample, SampleBatch
from flowloom.data.references import ReferenceReader
from flowloom.data.subjects import Instruction, Prompt, Reference
from flowloom.engine.lazy import Lazy
from flowloom.engine.randomness import generator
from flowloom.errors import CacheError, WeightsError
from flowloom.models.device import encoder_dtype
from flowloom.models.family import Codec, Conditioner, Conditioning, Grid, family_for, has_autoencoder


class Encodings(NamedTuple):
    """The encoded images and captions of a batch, on the CPU."""

    latents: Tensor
    """(B, L, D) float32, packed."""
    grid: Grid
    """Size of the latents before they were packed, without channels."""
    texts: list[Conditioning]
    """The named tensors of each of B captions."""
    text_lengths: list[int]
    """The number of states that each caption uses: all, except with FLOW's mask."""


class Encoders:
    """The frozen networks before the trained one, each opened for the first cache miss.

    On a CPU every image and caption is encoded alone: the batch size changes the last bits of an encoder's
    result, and a resumed run must see the same latents as an uninterrupted one.
    """

    def __init__(
        self,
        autoencoder: Lazy[Codec],
        text_encoder: Lazy[Conditioner],
        config: RunConfig,
        device: torch.device,
        caches: EncodingCaches | None = None,
        reader: ReferenceReader | None = None,
    ):
        self._autoencoder = autoencoder
        self._text_encoder = text_encoder
        self.family = family_for(config.model)
        self.device = device
        self.dtype = encoder_dtype(device)
        self.max_length = config.model.max_text_tokens
        self.minibatch = 1 if device.type == "cpu" else config.training.cache_minibatch
        self.union_mask = config.objective.mask_mode == "flow_union"
        self.seed = config.training.master_seed
        self.draws = config.cache.sampling == "draw" and has_autoencoder(self.family)
        self._paths = {role: self._files(config, role) for role in ("latents", "text")}
        self.caches = caches or caches_without_disk(config)
        self.reader = reader
        self.reference_resolution = config.dataloader.reference_resolution

    def _files(self, config: RunConfig, role: str) -> str:
        """The weights of the encoders with `role`, for a message."""
        files = (file for file in self.family.files if file.role == role and file.architectures)
        return " or ".join(getattr(config.model, file.key) for file in files)

    @property
    def autoencoder(self) -> Codec:
        """The VAE, opened if it is not."""
        return self._autoencoder.get()

    @property
    def text_encoder(self) -> Conditioner:
        """The text encoder, opened if it is not."""
        return self._text_encoder.get()

    @property
    def open_now(self) -> tuple[bool, bool]:
        """True for the VAE and for the text encoder if it takes memory now."""
        return self._autoencoder.is_open, self._text_encoder.is_open

    def free(self, *, autoencoder: bool = True, text_encoder: bool = True) -> None:
        """Free the networks whose results are kept on disk; they are opened again when needed."""
        if autoencoder and self.caches.latents.is_lasting:
            self._autoencoder.free()
        if text_encoder and self.caches.texts.is_lasting:
            self._text_encoder.free()

    @contextmanager
    def borrowed(self) -> Generator[None]:
        """Free at the end the networks that were opened inside, for a preview for example."""
        autoencoder, text_encoder = self.open_now
        try:
            yield
        finally:
            self.free(autoencoder=not autoencoder, text_encoder=not text_encoder)

    def begin_epoch(self) -> None:
        """Share the last epoch's encodings with all ranks, and free the networks until they are needed."""
        self.caches.latents.share()
        self.caches.texts.share()
        self.free()

    @torch.no_grad()
    def encode(self, batch: SampleBatch) -> Encodings:
        """Latents and text states of every sample of `batch`."""
        planes = self._drawn(batch, self.planes(batch.samples, batch.bucket))
        latents, grid = self.family.pack(planes.float()), tuple(planes.shape[2:])
        captions = [sample.caption for sample in batch.samples]
        if self.union_mask:
            # FLOW shows each sample the states of padding: they depend on the rest of the batch.
            texts = self.text_encoder.encode(captions, self.max_length, is_trimmed=False)
            counts = self.text_encoder.count_tokens(captions)
            lengths = [min(count + 1, self.max_length) for count in counts]
            pairs = zip(texts, captions, strict=True)
            return Encodings(latents, grid, [self._on_cpu(text, caption) for text, caption in pairs], lengths)
        prompts = [
            Instruction(sample.caption, sample.row, sample.num_references)
            if sample.num_references
            else sample.caption
            for sample in batch.samples
        ]
        texts = self.texts(prompts, {sample.row: sample.references for sample in batch.samples})
        texts = self.with_references(texts, [self.reference_planes(sample) for sample in batch.samples])
        return Encodings(latents, grid, texts, [len(text["states"]) for text in texts])

    def reference_planes(self, sample: Sample) -> list[Tensor]:
        """The latents (C, h, w) of each reference image of `sample`, encoded if they are not cached."""
        images = [Reference(sample.row, number) for number in range(sample.num_references)]
        known = self.caches.latents.get(images)
        if any(planes is None for planes in known):
            pixels = sample.references or self._read(sample.row)
            for i, planes in enumerate(known):
                if planes is None:
                    fresh = _finite(self.image_latents(pixels[i]), sample.filename, self._paths["latents"])
                    known[i] = self.caches.latents.put(images[i], fresh)
        return [planes for planes in known if planes is not None]

    def _read(self, row: int) -> Sequence[np.ndarray]:
        assert self.reader
        return self.reader.read(self.reader.dataset.metadata.row(row))

    @torch.no_grad()
    def image_latents(self, pixels: np.ndarray) -> Tensor:
        """The mean of the latents (C, h, w) of one image (h, w, 3)."""
        image = torch.from_numpy(pixels[None].copy()).to(self.device).permute(0, 3, 1, 2)
        return self.autoencoder.encode(image.to(self.dtype) / 127.5 - 1)[0].cpu()

    def with_references(
        self, texts: Sequence[Conditioning], planes: Sequence[Sequence[Tensor]]
    ) -> list[Conditioning]:
        """`texts`, each with the latents of its reference images; unchanged if none has any."""
        if not any(planes):
            return list(texts)
        width = self.autoencoder.channels * self.family.patch**2
        return [
            {
                **text,
                "references": torch.cat(
                    [torch.empty(0, width), *(self.family.pack(one[None].float())[0] for one in own)]
                ),
                "reference_grids": torch.tensor([one.shape[-2:] for one in own]).reshape(-1, 2).long(),
            }
            for text, own in zip(texts, planes, strict=True)
        ]

    def planes(self, samples: Sequence[Sample], bucket: Bucket) -> list[Tensor]:
        """The autoencoder's output for each sample: (C, h, w), or mean and log variance (2, C, h, w)."""
        subjects = [(sample.row, bucket) for sample in samples]
        known = [sample.latents for sample in samples]
        # An earlier batch may have encoded the image since the sample was loaded.
        unknown = [i for i, planes in enumerate(known) if planes is None]
        for i, planes in zip(unknown, self.caches.latents.get([subjects[i] for i in unknown]), strict=True):
            known[i] = planes
        missing = [i for i in unknown if known[i] is None]
        for start in range(0, len(missing), self.minibatch):
            chunk = missing[start : start + self.minibatch]
            fresh = self._encode_images([samples[i] for i in chunk])
            for i, planes in zip(chunk, fresh, strict=True):
                planes = _finite(planes, samples[i].filename, self._paths["latents"])
                known[i] = self.caches.latents.put(subjects[i], planes)
        return [planes for planes in known if planes is not None]

    @torch.no_grad()
    def _encode_images(self, samples: Sequence[Sample]) -> Tensor:
        pixels = np.stack([_pixels(sample) for sample in samples])
        images = torch.from_numpy(pixels).to(self.device).movedim(-1, 1)
        images = images.float() / 127.5 - 1  # the codec rounds to its own number format, if it has one
        vae = self.autoencoder
        return (vae.encode_spread(images) if self.draws else vae.encode(images)).cpu()

    def _drawn(self, batch: SampleBatch, planes: list[Tensor]) -> Tensor:
        """(B, C, h, w): the mean, or a random draw for every time that a row is shown."""
        if not self.draws:
            return torch.stack(planes)
        drawn: list[Tensor] = []
        for sample, (mean, log_variance) in zip(batch.samples, planes, strict=True):
            draw = generator(self.seed, "latents", sample.showing, sample.row)
            noise = torch.randn(mean.shape, generator=draw)
            drawn.append(mean.float() + (log_variance.float() / 2).exp() * noise)
        return torch.stack(drawn)

    @torch.no_grad()
    def texts(
        self, captions: Sequence[Prompt], references: Mapping[int, Sequence[np.ndarray]] | None = None
    ) -> list[Conditioning]:
        """The conditioning of each caption, encoded if it is not cached.

        Args:
            references: pixels of reference images by row; those that are missing are read.
        """
        unique = list(dict.fromkeys(captions))
        found = dict(zip(unique, self.caches.texts.get(unique), strict=True))
        for prompt, text in found.items():
            if text is None and isinstance(prompt, Instruction):
                pixels = (references or {}).get(prompt.row) or self._read(prompt.row)
                found[prompt] = self.caches.texts.put(prompt, self.edit_text(prompt.caption, pixels))
        missing = [prompt for prompt, text in found.items() if text is None and isinstance(prompt, str)]
        for start in range(0, len(missing), self.minibatch):
            chunk = missing[start : start + self.minibatch]
            for caption, text in zip(chunk, self.text_encoder.encode(chunk, self.max_length), strict=True):
                found[caption] = self.caches.texts.put(caption, self._on_cpu(text, caption))
        return [text for caption in captions if (text := found[caption]) is not None]

    @torch.no_grad()
    def edit_text(
        self, caption: str, pixels: Sequence[np.ndarray], max_length: int | None = None
    ) -> Conditioning:
        """The conditioning of a caption about images (h, w, 3), without their latents."""
        encoder: Any = self.text_encoder
        text = encoder.encode_edit(caption, pixels, max_length or self.max_length)
        return self._on_cpu(text, caption)

    def _on_cpu(self, text: Conditioning, caption: str) -> Conditioning:
        return {name: _finite(tensor.cpu(), caption, self._paths["text"]) for name, tensor in text.items()}

    def prompts(self, prompts: Sequence[str], max_length: int | None = None) -> list[Conditioning]:
        """`texts` of prompts, truncated to `max_length` tokens; None: to the length of captions."""
        wanted = self.max_length if max_length is None else max_length
        whole = self.texts(prompts)
        if wanted == self.max_length:
            return whole
        # A text shorter than both was not truncated and may come from the cache.
        limit = min(wanted, self.max_length)
        return [
            text
            if len(text["states"]) < limit
            else self._on_cpu(self.text_encoder.encode([prompt], wanted)[0], prompt)
            for prompt, text in zip(prompts, whole, strict=True)
        ]

    def edit_prompts(
        self, prompts: Sequence[str], images: Sequence[np.ndarray], max_length: int | None = None
    ) -> list[Conditioning]:
        """`prompts` about the same reference images (h, w, 3)."""
        planes = [
            _finite(self.image_latents(pixels), "a preview", self._paths["latents"]) for pixels in images
        ]
        texts = [self.edit_text(prompt, images, max_length) for prompt in prompts]
        return self.with_references(texts, [planes] * len(texts))


def _finite(encoded: Tensor, subject: str, path: str) -> Tensor:
    """Return `encoded` if it is finite: a NaN in the cache would spoil every later run.

    Raises:
        WeightsError: it holds a NaN or an infinity.
    """
    if torch.isfinite(encoded).all():
        return encoded
    raise WeightsError(
        f"{path}: its output for {subject[:80]!r} holds a NaN or an infinity. The file is damaged, or made "
        "for another number format: download it again, or choose another."
    )


def _pixels(sample: Sample) -> np.ndarray:
    if sample.pixels is None:
        raise CacheError(
            f"{sample.filename}: its latents were removed from the cache during the run. Do not prune a "
            "cache that is in use, then resume the run."
        )
    return sample.pixels
