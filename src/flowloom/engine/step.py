"""One optimizer update."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor, nn

from flowloom.engine.objective import LatentBatch, sample_losses
from flowloom.engine.state import TrainState


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
    for micro_batch in chain.from_iterable(batch.split(size) for batch in batches):
        with state.precision.autocast():
            micro_losses = sample_losses(state.model, micro_batch, state.objective)
        share = (micro_losses * micro_batch.loss_weight).sum() / total_weight
        share.backward()
        loss += share.detach()
        losses.append(micro_losses.detach())

    state.ranks.sum_gradients(state.trained.values())
    grad_norm = _clip(state.trained.values(), state.config.optimizer.max_grad_norm)
    lr = state.set_lr()
    with state.updating():
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
        state.position.step += 1
        if state.ema:
            state.ema.update(state.weights, state.position.step)
    levels = torch.cat([batch.noise_level for batch in batches])
    return StepMetrics(state.ranks.sum(loss), grad_norm, torch.cat(losses), levels, lr)


def _clip(parameters: Iterable[nn.Parameter], max_norm: float | None) -> Tensor:
    """Clip the gradients to the norm `max_norm` and return the norm before."""
    parameters = list(parameters)
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    if max_norm is not None:
        nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm
