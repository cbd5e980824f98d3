"""From a loaded batch to the samples of its updates: encoded, with noise levels and paired noise."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from itertools import accumulate, pairwise

import numpy as np
import torch
from torch import Tensor, nn

from flowloom.data.loader import SampleBatch
from flowloom.engine.encode import Encodings
from flowloom.engine.objective import LatentBatch
from flowloom.engine.randomness import generator
from flowloom.engine.state import TrainState
from flowloom.flow_matching.coupling import optimal_transport, similarities
from flowloom.models.device import sent
from flowloom.models.family import Conditioning, Grid, family_of

Showing = tuple[int, int]
"""A row, and the number of times that it was shown before: each sample of a run has another one."""


def prepare(state: TrainState, loaded: SampleBatch, encoded: Encodings | None) -> LatentBatch:
    """This rank's part of a batch, ready for the network.

    Noise and noise level of a sample are functions of (seed, row, number of times that the row was shown):
    they do not depend on the number of ranks, and a resumed run draws the same ones. Noise is paired with
    latents over the whole batch, before it is split into updates, ranks and micro-batches: all ranks call
    this together.

    Args:
        encoded: the samples of `loaded`; None if it has none.
    """
    seed, showings = state.config.training.master_seed, [(one.row, one.showing) for one in loaded.samples]
    latents = torch.empty(0, 0) if encoded is None else encoded.latents
    noise = _noise(state, showings, latents)
    if encoded is None:
        return _nothing(state.precision.device)
    draws = (generator(seed, "noise level", *showing) for showing in showings)
    uniform = torch.cat([torch.rand(1, generator=draw, dtype=torch.float64) for draw in draws])
    return assemble(state, loaded, encoded, noise, state.objective.quantile(uniform))


def _noise(state: TrainState, showings: list[Showing], latents: Tensor) -> Tensor:
    """Noise like `latents`, (B, L, D), of the samples at these showings."""
    seed, shape = state.config.training.master_seed, latents.shape[1:]
    if state.config.objective.pairing != "optimal_transport":
        return _drawn(seed, showings, shape)
    places = {showing: place for place, showing in enumerate(sorted(state.ranks.gathered(showings)))}
    noise = _drawn(seed, places, shape)
    # Ranks exchange similarities, which are small, and draw all noise of the batch.
    rows = state.ranks.gathered(list(zip(showings, similarities(latents, noise), strict=True)))
    similarity = torch.empty(len(rows), len(rows))
    for showing, row in rows:
        similarity[places[showing]] = row
    order = optimal_transport(similarity)
    return noise[order[[places[showing] for showing in showings]]]


def _drawn(seed: int, showings: Collection[Showing], shape: Sequence[int]) -> Tensor:
    """(B, *shape) standard normal."""
    noise = torch.empty(len(showings), *shape)
    for row, showing in zip(noise, showings, strict=True):
        torch.randn(shape, generator=generator(seed, "noise", *showing), out=row)
    return noise


def _nothing(device: torch.device) -> LatentBatch:
    """The empty part of a rank: the batch has fewer rows than there are ranks, or none could be read."""
    none, tokens = torch.zeros(0, device=device), torch.zeros(0, 0, 0, device=device)
    return LatentBatch(tokens, tokens, none, [], [], none.bool(), none, (0, 0))


def assemble(
    state: TrainState, loaded: SampleBatch, encoded: Encodings, noise: Tensor, level: Tensor
) -> LatentBatch:
    """Everything about the samples of `loaded`, on the device."""
    device = state.precision.device
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
        token_weight=_token_weight(loaded, encoded.grid, family_of(state.model).patch, device),
    )


def _sent_texts(texts: Sequence[Conditioning], device: torch.device) -> list[Conditioning]:
    """`texts` on the device, one transfer for each name."""
    columns: dict[str, Sequence[Tensor]] = {}
    for name in texts[0]:
        lengths = [len(text[name]) for text in texts]
        columns[name] = sent(torch.cat([text[name] for text in texts]), device).split(lengths)
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _token_weight(loaded: SampleBatch, grid: Grid, patch: int, device: torch.device) -> Tensor | None:
    """(B, L): the mean of each sample's mask over the pixels of each token; None where none has a mask.

    The mask of a clip is the same in all of its frames.
    """
    masks = [sample.mask for sample in loaded.samples]
    if all(mask is None for mask in masks):
        return None
    width, height = loaded.size
    everything = np.full((height, width), 255, np.uint8)
    planes = torch.from_numpy(np.stack([everything if mask is None else mask for mask in masks]))
    # Latents per token, and pixels per latent.
    *frames, rows, columns = grid
    sides = patch * (height // rows), patch * (width // columns)
    weight = nn.functional.avg_pool2d(planes[:, None].double() / 255, sides)
    return sent(weight.flatten(1).float().repeat(1, math.prod(frames)), device)


def updates_of(batch: LatentBatch, sizes: Sequence[int], done: int) -> Iterator[LatentBatch]:
    """The parts of `batch` for its updates, of `sizes` samples, from update `done` on."""
    edges = [0, *accumulate(sizes)]
    for start, stop in pairwise(edges[done:]):
        yield batch.part(start, stop)
