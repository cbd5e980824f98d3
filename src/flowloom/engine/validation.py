"""Loss on rows that are never trained, at fixed noise levels with fixed noise."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from flowloom.data.loader import Loader, SampleBatch, Skipped
from flowloom.engine.collate import assemble
from flowloom.engine.encode import Encoders
from flowloom.engine.objective import LatentBatch, sample_losses
from flowloom.engine.randomness import generator
from flowloom.engine.state import TrainState


@torch.no_grad()
def validation_loss(
    state: TrainState,
    loader: Loader,
    encoders: Encoders,
    on_skipped: Callable[[list[Skipped]], None] = lambda _skipped: None,
) -> dict[str, float]:
    """The mean loss at each of `validation.quantiles` of the training density, by quantile.

    Every row gets the same noise at every quantile and in every measurement; captions are complete.
    Empty if no row can be used; `on_skipped` is called with the unusable ones.
    """
    sums: dict[float, list[Tensor]] = {quantile: [] for quantile in state.config.validation.quantiles}
    counts = dict.fromkeys(sums, 0)

    def batches() -> Iterator[tuple[float, LatentBatch]]:
        for loaded in loader.batches(epoch=0):
            on_skipped(loaded.skipped)
            yield from _at_quantiles(state, loaded, encoders)

    for quantile, sent in state.sharers.each_from_first(batches):
        counts[quantile] += len(sent)
        batch = sent.to(state.precision.device)
        for micro_batch in batch.split(state.config.training.train_minibatch):
            with state.precision.autocast():
                losses = sample_losses(state.model, micro_batch, state.objective)
            sums[quantile].append(losses.sum())
    if not any(counts.values()):
        return {}
    # Read only at the end: each reading makes the CPU wait for the device.
    return {str(q): sum(part.item() for part in parts) / counts[q] for q, parts in sums.items()}


def _at_quantiles(
    state: TrainState, loaded: SampleBatch, encoders: Encoders
) -> Iterator[tuple[float, LatentBatch]]:
    if not loaded.samples:
        return
    encoded = encoders.encode(loaded)
    seed, shape = state.config.training.master_seed, encoded.latents.shape[1:]
    draws = (generator(seed, "validation", sample.row) for sample in loaded.samples)
    noise = torch.stack([torch.randn(shape, generator=draw) for draw in draws])
    for quantile in state.config.validation.quantiles:
        level = state.objective.quantile(torch.full((len(noise),), quantile, dtype=torch.float64))
        batch = assemble(state, loaded, encoded, noise, level)
        yield quantile, batch if state.sharers.size == 1 else batch.to(torch.device("cpu"))
