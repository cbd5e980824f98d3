"""One complete training step, 4 images, 40 of 512 text tokens real: time of diffusers over ours.

Both make the same AdamW update of the same weights from the same batch and noise, with recomputed activations
asked for; ours recomputes as many blocks as the memory asks for, which is none here (`all` in the detail
recomputes every block). diffusers' single blocks forget the mask while they recompute, so its losses are
compared without checkpointing, and its time is taken with it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks import rival
from benchmarks.timing import Measured, interleaved
from flowloom.config.run import RunConfig
from flowloom.engine.objective import LatentBatch, Objective
from flowloom.engine.parallel.ranks import Ranks
from flowloom.engine.state import Network, Precision, TrainState
from flowloom.engine.step import train_step
from flowloom.flow_matching.noise_level import flow_quantile
from flowloom.flow_matching.path import interpolate, velocity_target
from flowloom.nn.chroma import Chroma, ChromaParams
from flowloom.nn.patches import image_ids
from flowloom.nn.recompute import Recompute

SMALL = ChromaParams(64, 256, 256, 4.0, 8, 2, 4, (4, 14, 14), 10_000, True, 64, 5, 256)
BATCH, IMAGE_TOKENS, TEXT_TOKENS, REAL_TOKENS = 4, 256, 512, 40
LR = 1e-4
TARGET = 3.5


def network(seed: int = 0, params: ChromaParams = SMALL) -> Chroma:
    """The small network; no weight is zero, so that every part counts."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Chroma(params)
        for weight in model.parameters():
            nn.init.normal_(weight, mean=float(weight.ndim == 1), std=0.5 / weight.shape[-1] ** 0.5)
    model.distilled_guidance_layer.requires_grad_(False)
    return model


def random_batch(seed: int = 0) -> LatentBatch:
    """Inputs as the encoders leave them: texts trimmed to what takes part."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    return LatentBatch(
        latents=normal(BATCH, IMAGE_TOKENS, SMALL.in_channels),
        noise=normal(BATCH, IMAGE_TOKENS, SMALL.in_channels),
        noise_level=flow_quantile(torch.rand(BATCH, generator=generator)),
        texts=[{"states": states} for states in normal(BATCH, REAL_TOKENS, SMALL.context_in_dim)],
        text_lengths=[REAL_TOKENS] * BATCH,
        is_captioned=torch.ones(BATCH, dtype=torch.bool),
        loss_weight=torch.ones(BATCH),
        grid=(32, 32),
    )


def our_step(model: Chroma, batch: LatentBatch) -> Callable[[], float]:
    """The engine's own step."""
    config = RunConfig.model_validate({"training": {"train_minibatch": BATCH, "lr": LR}})
    precision = Precision(torch.device("cpu"), torch.float32, torch.float32)
    state = TrainState(config, Network(model), Objective(flow_quantile), precision, Ranks())
    return lambda: train_step(state, batch).loss.item()


def their_step(model: nn.Module, batch: LatentBatch) -> Callable[[], float]:
    """The step as one writes it around diffusers' transformer: padded text, a boolean mask, fused AdamW."""
    padding = (0, 0, 0, TEXT_TOKENS - REAL_TOKENS)
    text = torch.stack([nn.functional.pad(text["states"], padding) for text in batch.texts])
    mask = torch.zeros(BATCH, TEXT_TOKENS, dtype=torch.bool)
    mask[:, :REAL_TOKENS] = True
    height, width = batch.grid
    ids = image_ids(height, width)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LR, weight_decay=0.0, fused=True)

    def step() -> float:
        x = interpolate(batch.latents, batch.noise, batch.noise_level)
        prediction = rival.velocity(model, x, batch.noise_level, text, ids, mask)
        loss = (prediction - velocity_target(batch.latents, batch.noise)).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step


def run() -> Measured:
    """Ratio of step times."""
    warnings.filterwarnings("ignore", category=FutureWarning, module="diffusers")
    batch = random_batch()
    ours, theirs = network(), rival.twin(network())
    step, unchecked = our_step(ours, batch), their_step(theirs, batch)
    losses = [(step(), unchecked()) for _ in range(4)]
    difference = max(abs(a - b) / b for a, b in losses)

    theirs.enable_gradient_checkpointing()
    checkpointed = their_step(theirs, batch)
    our_seconds, their_seconds = interleaved(step, checkpointed)
    ours.recompute = Recompute(len(ours.blocks()))
    all_seconds, _ = interleaved(step, checkpointed, repeats=3)
    return Measured(
        ratio=their_seconds / our_seconds,
        target=TARGET,
        correct=difference < 1e-4,
        detail={
            "our_s": our_seconds,
            "diffusers_s": their_seconds,
            "ratio_with_all_recomputed": their_seconds / all_seconds,
            "loss_difference": difference,
            "losses": len(losses),
        },
    )
