"""The objective: the velocity of the straight path from image to noise."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from flowloom.config.run import ObjectiveSection, RunConfig
from flowloom.flow_matching import noise_level as densities
from flowloom.flow_matching.path import interpolate, velocity_from_x0, velocity_target
from flowloom.models.family import Conditioning, Grid, family_for, family_of

X0_TRAINING_EPS = 0.05
"""Keeps the x0 objective finite where the noise level is near 0; FLOW's value."""


@dataclass(frozen=True)
class LatentBatch:
    """Samples ready for the network: encoded, with their noise."""

    latents: Tensor
    """(B, L, D) packed latents."""
    noise: Tensor
    """(B, L, D) standard normal, already paired."""
    noise_level: Tensor
    """(B,) float32 in [0, 1]."""
    texts: list[Conditioning]
    """The named tensors of B captions; for FLOW's mask all states are of one length."""
    text_lengths: list[int]
    """B numbers: the caption's tokens and one of padding."""
    is_captioned: Tensor
    """(B,) bool: False where the caption was dropped."""
    loss_weight: Tensor
    """(B,) float32."""
    grid: Grid
    """Size of the latents that were packed, without channels."""
    token_weight: Tensor | None = None
    """(B, L) float32 in [0, 1]: the loss weight of each token; None: 1."""

    def __len__(self) -> int:
        return len(self.texts)

    def part(self, start: int, stop: int) -> LatentBatch:
        """Samples `start` to `stop`, as views."""
        cut = slice(start, stop)
        return replace(
            self,
            latents=self.latents[cut],
            noise=self.noise[cut],
            noise_level=self.noise_level[cut],
            texts=self.texts[cut],
            text_lengths=self.text_lengths[cut],
            is_captioned=self.is_captioned[cut],
            loss_weight=self.loss_weight[cut],
            token_weight=None if self.token_weight is None else self.token_weight[cut],
        )

    def with_each(self, change: Callable[[Tensor], Tensor]) -> LatentBatch:
        """The batch with `change` of each tensor in its place."""
        return replace(
            self,
            latents=change(self.latents),
            noise=change(self.noise),
            noise_level=change(self.noise_level),
            texts=[{name: change(tensor) for name, tensor in text.items()} for text in self.texts],
            is_captioned=change(self.is_captioned),
            loss_weight=change(self.loss_weight),
            token_weight=None if self.token_weight is None else change(self.token_weight),
        )

    def to(self, device: torch.device) -> LatentBatch:
        """The batch on `device`."""
        return self.with_each(lambda tensor: tensor.to(device))

    def split(self, size: int) -> Iterator[LatentBatch]:
        """Micro-batches of `size` samples, the last one shorter."""
        for start in range(0, len(self), size):
            yield self.part(start, start + size)


@dataclass(frozen=True)
class Objective:
    """Settings of the loss."""

    quantile: Callable[[Tensor], Tensor]
    """Inverse CDF of the noise level's density: uniform numbers to noise levels."""
    huber_delta: float | None = None
    """None: squared error."""
    predicts_x0: bool = False
    cfg_strength: float | None = None
    """Train towards the guided velocity, as FLOW's CFG trainer does."""
    union_mask: bool = False
    """FLOW's mask: every sample sees as much text as the longest of its micro-batch."""
    empty_text: Conditioning | None = None
    """The empty caption, for `cfg_strength`."""


def density(config: RunConfig) -> Callable[[Tensor], Tensor]:
    """The inverse CDF that `objective.noise_level` names, cut to the levels that the network is used at."""
    lowest, highest = family_for(config.model).noise_levels(config.model)
    quantile = _density(config)
    return quantile if (lowest, highest) == (0, 1) else densities.cut(quantile, lowest, highest)


def _density(config: RunConfig) -> Callable[[Tensor], Tensor]:
    spec = config.objective.noise_level
    if spec.kind == "auto":
        own = {"noise_level": family_for(config.model).defaults.noise_level}
        spec = ObjectiveSection.model_validate(own).noise_level
    if spec.kind == "uniform":
        return densities.uniform_quantile
    if spec.kind == "logit_normal":
        return lambda u: densities.logit_normal_quantile(u, spec.mean, spec.std)
    if spec.kind == "shifted":
        return lambda u: densities.shifted_quantile(u, spec.shift)
    return densities.flow_quantile


def sample_losses(model: nn.Module, batch: LatentBatch, objective: Objective) -> Tensor:
    """The error of the velocity that `model` predicts, one number for each sample, unweighted.

    On the path x = (1 - t) * latents + t * noise the velocity dx/dt is noise - latents everywhere
    (Liu et al. 2022, arXiv:2209.03003). An x0 network predicts the latents instead, and both it and the
    truth are turned into velocities over t + 0.05.

    Returns:
        (B,) float32.
    """
    x = interpolate(batch.latents, batch.noise, batch.noise_level)
    family = family_of(model)

    def velocity(texts: Sequence[Conditioning]) -> Tensor:
        text = _union(texts, max(batch.text_lengths)) if objective.union_mask else texts
        prediction = family.predict(model, x, batch.noise_level, text, batch.grid).float()
        if objective.predicts_x0:
            return velocity_from_x0(prediction, x, batch.noise_level, X0_TRAINING_EPS)
        return prediction

    if objective.predicts_x0:
        target = velocity_from_x0(batch.latents, x, batch.noise_level, X0_TRAINING_EPS)
    else:
        target = velocity_target(batch.latents, batch.noise)
    if objective.cfg_strength is not None:
        target = _guided_target(target, velocity, batch, objective)
    error = _errors(velocity(batch.texts), target.float(), objective.huber_delta)
    if batch.token_weight is None:
        return error.mean(dim=(1, 2))
    # The weighted mean: with a mask of ones, exactly the plain mean.
    counted = batch.token_weight.mean(dim=1).clamp(min=torch.finfo(torch.float32).tiny)
    return (error * batch.token_weight[:, :, None]).mean(dim=(1, 2)) / counted


def _union(texts: Sequence[Conditioning], longest: int) -> list[Conditioning]:
    """Every caption's states, cut and padded to the length of the micro-batch's longest."""
    states = nn.utils.rnn.pad_sequence([text["states"][:longest] for text in texts], batch_first=True)
    return [{**text, "states": each} for text, each in zip(texts, states, strict=True)]


def _guided_target(
    target: Tensor,
    velocity: Callable[[Sequence[Conditioning]], Tensor],
    batch: LatentBatch,
    objective: Objective,
) -> Tensor:
    """uncond + strength * (velocity - uncond) for captioned samples, plain velocity for the others."""
    assert objective.empty_text is not None
    assert objective.cfg_strength is not None
    with torch.no_grad():
        uncond = velocity([objective.empty_text] * len(batch))
    guided = uncond + objective.cfg_strength * (target - uncond)
    return torch.where(batch.is_captioned[:, None, None], guided, target)


def _errors(prediction: Tensor, target: Tensor, huber_delta: float | None) -> Tensor:
    if huber_delta is None:
        return (prediction - target).square()
    return nn.functional.huber_loss(prediction, target, reduction="none", delta=huber_delta)
