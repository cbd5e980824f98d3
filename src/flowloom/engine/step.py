"""One optimizer update."""

from __future__ import annotations

from contextlib import ExitStack
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor

from flowloom.engine.objective import LatentBatch, sample_losses
from flowloom.engine.parallel.fillers import fillers_for
from flowloom.engine.state import TrainState

NUM_NOISE_BINS = 8


class StepMetrics(NamedTuple):
    """Metrics of an update, as device tensors: reading one makes the CPU wait, so only the reporter does."""

    loss: Tensor
    """0-d, weighted mean over the update, on all ranks."""
    grad_norm: Tensor
    """0-d, before clipping."""
    losses: Tensor
    """(B,) unweighted, of this rank."""
    noise_level: Tensor
    """(B,) of this rank."""
    lr: float
    """The learning rate that the update used."""
    by_noise_level: Tensor
    """(2, `NUM_NOISE_BINS`) of all ranks: for each bin, sum of unweighted losses and number of samples."""


def train_step(state: TrainState, *batches: LatentBatch) -> StepMetrics:
    """Make one optimizer update from `batches`, each of one size, in micro-batches.

    The loss is the mean over every sample of the update, on all ranks, weighted by its `loss_weight`:
    the split into batches, micro-batches and ranks does not change it.
    """
    weight = torch.stack([batch.loss_weight.sum() for batch in batches]).sum()
    total_weight = state.ranks.sum(weight).clamp(min=torch.finfo(torch.float32).tiny)
    loss = torch.zeros_like(total_weight)
    losses = [total_weight.new_zeros(0)]
    size = state.config.training.train_minibatch
    micro_batches = list(chain.from_iterable(batch.split(size) for batch in batches))
    fillers = fillers_for(state.sharers, micro_batches, total_weight.device)
    num_passes = len(micro_batches) + len(fillers)
    lr = state.set_lr()
    with ExitStack() as update:
        for number, micro_batch in enumerate(chain(micro_batches, fillers), start=1):
            with state.precision.autocast():
                micro_losses = sample_losses(state.model, micro_batch, state.objective)
            share = (micro_losses * micro_batch.loss_weight).sum() / total_weight
            if state.is_fused:
                update.enter_context(state.updating())
            state.gradients.backward(share, is_last=number == num_passes)
            if number <= len(micro_batches):
                loss += share.detach()
                losses.append(micro_losses.detach())
        grad_norm = state.gradients.finish(state.config.optimizer.max_grad_norm)
        if not state.is_fused:
            update.enter_context(state.updating())
        state.apply_update()
        state.position.step += 1
        if state.ema:
            state.ema.update(state.exact_weights, state.position.step)
    levels, of_rank = torch.cat([batch.noise_level for batch in batches]), torch.cat(losses)
    # One transfer: waiting for it takes longer than sending it.
    totals = state.ranks.sum(torch.cat([loss[None], *_in_bins(of_rank, levels)]))
    bins = totals[1:].view(2, NUM_NOISE_BINS)
    return StepMetrics(totals[0], grad_norm, of_rank, levels, lr, bins)


def _in_bins(losses: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of losses and the number of samples in each bin of noise levels."""
    bins = (levels * NUM_NOISE_BINS).long().clamp(0, NUM_NOISE_BINS - 1)
    empty = losses.new_zeros(NUM_NOISE_BINS)
    return empty.index_add(0, bins, losses), empty.index_add(0, bins, torch.ones_like(losses))
