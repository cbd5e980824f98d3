"""Loss on rows that are never trained, at fixed noise levels with fixed noise."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from flowloom.data.loader import LoadedBatch, Loader
from flowloom.engine.encode import Encoders
from flowloom.engine.objective import LatentBatch, sample_losses
from flowloom.engine.randomness import generator
from flowloom.engine.state import TrainState
from flowloom.nn.patches import image_ids


@torch.no_grad()
def validation_loss(state: TrainState, loader: Loader, encoders: Encoders) -> dict[str, float]:
    """The mean loss at each of `validation.quantiles` of the training density, by quantile.

    Every row meets the same noise at every quantile and every time it is measured; captions are whole.
    """
    sums = dict.fromkeys(state.config.validation.quantiles, 0.0)
    count = 0
    for loaded in loader.batches(epoch=0):
        count += len(loaded.samples)
        for quantile, batch in _at_quantiles(state, loaded, encoders):
            for micro_batch in batch.split(state.config.training.train_minibatch):
                with state.precision.autocast():
                    losses = sample_losses(state.model, micro_batch, state.objective)
                sums[quantile] += losses.sum().item()
    return {str(quantile): total / max(count, 1) for quantile, total in sums.items()}


def _at_quantiles(
    state: TrainState, loaded: LoadedBatch, encoders: Encoders
) -> Iterator[tuple[float, LatentBatch]]:
    if not loaded.samples:
        return
    device = state.precision.device
    encoded = encoders.encode(loaded)
    seed = state.config.training.master_seed
    noises = [
        torch.randn(encoded.latents.shape[1:], generator=generator(seed, "validation", s.row))
        for s in loaded.samples
    ]
    width, height = loaded.size
    factor = encoders.autoencoder.factor
    for quantile in state.config.validation.quantiles:
        level = state.objective.quantile(torch.full((len(noises),), quantile, dtype=torch.float64))
        yield (
            quantile,
            LatentBatch(
                latents=encoded.latents.to(device),
                noise=torch.stack(noises).to(device),
                noise_level=level.float().to(device),
                texts=[states.to(device) for states in encoded.texts],
                is_captioned=torch.tensor([bool(s.caption) for s in loaded.samples], device=device),
                loss_weight=torch.ones(len(noises), device=device),
                image_ids=image_ids(height // factor, width // factor).to(device),
            ),
        )
