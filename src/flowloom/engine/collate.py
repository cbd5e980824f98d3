"""From a loaded batch to the samples of its updates: encoded, with noise levels and paired noise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise

import numpy as np
import torch
from torch import Tensor, nn

from flowloom.data.loader import SampleBatch
from flowloom.engine.encode import Encoders, Encodings
from flowloom.engine.objective import LatentBatch
from flowloom.engine.randomness import generator
from flowloom.engine.state import TrainState
from flowloom.flow_matching.coupling import optimal_transport
from flowloom.models.device import sent
from flowloom.models.family import Conditioning, Grid


def prepare(state: TrainState, loaded: SampleBatch, encoders: Encoders) -> LatentBatch:
    """The complete loaded batch, ready for the network.

    Noise and noise levels are functions of (seed, epoch, batch, rank): they differ between ranks, and a
    resumed run draws the same ones. Noise is paired with latents over this rank's whole part of the batch,
    before it is split into updates and micro-batches.
    """
    if not loaded.samples:
        return _nothing(encoders.device)
    encoded = encoders.encode(loaded)
    draw = generator(state.config.training.master_seed, "noise", loaded.epoch, loaded.index, state.ranks.rank)
    level = state.objective.quantile(torch.rand(len(loaded.samples), generator=draw, dtype=torch.float64))
    noise = torch.randn(encoded.latents.shape, generator=draw)
    if state.config.objective.pairing == "optimal_transport":
        noise = noise[optimal_transport(encoded.latents, noise)]
    return assemble(loaded, encoded, noise, level, encoders)


def _nothing(device: torch.device) -> LatentBatch:
    """The empty part of a rank: the batch has fewer rows than there are ranks, or none could be read."""
    none, tokens = torch.zeros(0, device=device), torch.zeros(0, 0, 0, device=device)
    return LatentBatch(tokens, tokens, none, [], [], none.bool(), none, (0, 0))


def assemble(
    loaded: SampleBatch, encoded: Encodings, noise: Tensor, level: Tensor, encoders: Encoders
) -> LatentBatch:
    """Everything about the samples of `loaded`, on the device."""
    device = encoders.device
    is_captioned = torch.tensor([bool(sample.caption) for sample in loaded.samples])
    weights = torch.tensor([sample.loss_weight for sample in loaded.samples], dtype=torch.float32)
    return LatentBatch(
        latents=sent(encoded.latents, device),
        noise=sent(noise, device),
        noise_level=sent(level.float(), device),
        texts=_sent_texts(encoded.texts, device),
        text_lengths=encoded.text_lengths,
        is_captioned=sent(is_captioned, device),
        loss_weight=sent(weights, device),
        grid=encoded.grid,
        token_weight=_token_weight(loaded, encoded.grid, encoders.family.patch, device),
    )


def _sent_texts(texts: Sequence[Conditioning], device: torch.device) -> list[Conditioning]:
    """`texts` on the device, one transfer for each name."""
    columns: dict[str, Sequence[Tensor]] = {}
    for name in texts[0]:
        lengths = [len(text[name]) for text in texts]
        columns[name] = sent(torch.cat([text[name] for text in texts]), device).split(lengths)
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _token_weight(loaded: SampleBatch, grid: Grid, patch: int, device: torch.device) -> Tensor | None:
    """(B, L): the mean of each sample's mask over the pixels of each token; None where none has a mask."""
    masks = [sample.mask for sample in loaded.samples]
    if all(mask is None for mask in masks):
        return None
    width, height = loaded.size
    everything = np.full((height, width), 255, np.uint8)
    planes = torch.from_numpy(np.stack([everything if mask is None else mask for mask in masks]))
    # Latents per token, and pixels per latent.
    sides = patch * (height // grid[0]), patch * (width // grid[1])
    weight = nn.functional.avg_pool2d(planes[:, None].double() / 255, sides)
    return sent(weight.flatten(1).float(), device)


def updates_of(batch: LatentBatch, sizes: Sequence[int], done: int) -> Iterator[LatentBatch]:
    """The parts of `batch` for its updates, of `sizes` samples, from update `done` on."""
    edges = [0, *accumulate(sizes)]
    for start, stop in pairwise(edges[done:]):
        yield batch.part(start, stop)
