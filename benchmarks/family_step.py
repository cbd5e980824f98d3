"""One full training step of each family on equal inputs: least time of diffusers' network over ours.

Both make the same AdamW update of the same weights from the same batch and noise; diffusers' network is in a
plain loop. Where the network has a text mask, 40 tokens are trained besides: padded to 512 and masked in the
loop, trimmed in ours, with a target of 1.5. The ratio is the least one, each divided by its target.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import torch
from torch import Tensor, nn

from benchmarks.timing import Measured, interleaved
from flowloom.config.run import RunConfig
from flowloom.engine.objective import LatentBatch, Objective
from flowloom.engine.parallel.ranks import Ranks
from flowloom.engine.state import Network, Precision, TrainState
from flowloom.engine.step import train_step
from flowloom.flow_matching.noise_level import flow_quantile
from flowloom.flow_matching.path import interpolate, velocity_target
from flowloom.models.family import Conditioning
from tests.families.flux1 import MAX_LENGTH, TinyFlux1
from tests.families.flux2 import TinyFlux2
from tests.families.qwen_image import TinyQwenImage
from tests.families.zimage import TinyZImage

BATCH, SIDE, LR, MAX_NORM = 2, 16, 1e-4, 1.0
"""Samples, image tokens on each side; gradients are clipped as in diffusers' training scripts."""
CPU = torch.device("cpu")


class Subject(NamedTuple):
    """A family's network at a small size, and the length of its text."""

    given: Any
    """A TinyPipeline of tests/families."""
    arguments: Mapping[str, Any]
    """Of the class in diffusers."""
    text_width: int
    num_tokens: int = 64
    extra: Mapping[str, tuple[int, ...]] = {}
    """Shapes of further tensors of a caption."""
    padded: int = 0
    """Length of the text in diffusers' network, the rest masked; 0: that of ours."""
    target: float = 1.0


_HEADS = {"attention_head_dim": 32, "num_attention_heads": 8}
_QWEN = {"in_channels": 64, "out_channels": 16, "num_layers": 4, "joint_attention_dim": 256}
SUBJECTS = {
    "flux1": Subject(
        TinyFlux1(),
        _HEADS
        | {"in_channels": 64, "num_layers": 2, "num_single_layers": 4, "joint_attention_dim": 256}
        | {"pooled_projection_dim": 64, "axes_dims_rope": (4, 14, 14), "guidance_embeds": True},
        text_width=256,
        num_tokens=MAX_LENGTH,
        extra={"pooled": (64,)},
    ),
    "flux2": Subject(
        TinyFlux2(is_dev=False),
        _HEADS
        | {"in_channels": 128, "num_layers": 2, "num_single_layers": 4, "joint_attention_dim": 384}
        | {"axes_dims_rope": (8, 8, 8, 8), "guidance_embeds": False},
        text_width=384,
    ),
    "qwen-image": Subject(TinyQwenImage(), _HEADS | _QWEN | {"axes_dims_rope": (8, 12, 12)}, text_width=256),
    "qwen-image-40": Subject(
        TinyQwenImage(),
        _HEADS | _QWEN | {"axes_dims_rope": (8, 12, 12)},
        text_width=256,
        num_tokens=40,
        padded=512,
        target=1.5,
    ),
    "z-image": Subject(
        TinyZImage(),
        {"in_channels": 16, "dim": 256, "n_layers": 4, "n_refiner_layers": 1, "n_heads": 8, "n_kv_heads": 8}
        | {"cap_feat_dim": 256, "axes_dims": [8, 12, 12], "axes_lens": [1024, 64, 64]},
        text_width=256,
    ),
}
"""Add a family's own."""


def run() -> Measured:
    """The least ratio; correct when all losses of the first steps are equal to 1e-4."""
    warnings.filterwarnings("ignore", category=FutureWarning, module="diffusers")
    ratios: dict[str, float] = {}
    difference = 0.0
    for name, subject in SUBJECTS.items():
        ours, theirs = steps(subject)
        losses = [(ours(), theirs()) for _ in range(3)]
        difference = max(difference, *(abs(a - b) / b for a, b in losses))
        our_seconds, their_seconds = interleaved(ours, theirs)
        ratios[name] = their_seconds / our_seconds
    least = min(ratio / SUBJECTS[name].target for name, ratio in ratios.items())
    return Measured(least, 1.0, difference < 1e-4, detail={**ratios, "loss_difference": difference})


def steps(subject: Subject) -> tuple[Callable[[], float], Callable[[], float]]:
    """A step of ours and one of diffusers' network, each with its weights, equal at first."""
    (kind,) = subject.given.family.network_types
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = getattr(diffusers, kind)(**subject.arguments)
        for weight in network.parameters():  # no part is zero
            nn.init.normal_(weight, mean=float(weight.ndim == 1), std=0.5 / weight.shape[-1] ** 0.5)
    with tempfile.TemporaryDirectory() as folder:
        network.save_pretrained(folder)
        ours = subject.given.family.load_network(Path(folder), CPU, torch.float32)
        config = {
            "model": {"path": folder},
            "training": {"train_minibatch": BATCH, "lr": LR},
            "optimizer": {"max_grad_norm": MAX_NORM},
        }
        precision = Precision(CPU, torch.float32, torch.float32)
        state = TrainState(
            RunConfig.model_validate(config), Network(ours), Objective(flow_quantile), precision, Ranks()
        )
    batch = random_batch(subject)
    return lambda: train_step(state, batch).loss.item(), their_step(subject, network, batch)


def random_batch(subject: Subject) -> LatentBatch:
    """Inputs as the encoders leave them."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    family, width = subject.given.family, subject.arguments["in_channels"]
    channels = width if family.patch == 1 or width > 16 else 4 * width
    side, shape = SIDE * family.patch, (BATCH, SIDE**2, channels)
    captions: list[Conditioning] = [
        {"states": normal(subject.num_tokens, subject.text_width)}
        | {name: normal(*shape) for name, shape in subject.extra.items()}
        for _ in range(BATCH)
    ]
    return LatentBatch(
        latents=normal(*shape),
        noise=normal(*shape),
        noise_level=flow_quantile(torch.rand(BATCH, generator=generator)),
        texts=captions,
        text_lengths=[subject.num_tokens] * BATCH,
        is_captioned=torch.ones(BATCH, dtype=torch.bool),
        loss_weight=torch.ones(BATCH),
        grid=(side, side),
    )


def their_step(subject: Subject, network: nn.Module, batch: LatentBatch) -> Callable[[], float]:
    """The step as one writes it around diffusers' network, with clipping and fused AdamW."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=LR, weight_decay=0.0, fused=True)
    called = _padding(network, subject.padded) if subject.padded else network

    def step() -> float:
        x = interpolate(batch.latents, batch.noise, batch.noise_level)
        prediction = subject.given.velocity(called, x, batch.noise_level, batch.texts, batch.grid)
        loss = (prediction - velocity_target(batch.latents, batch.noise)).square().mean()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), MAX_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step


def _padding(network: nn.Module, length: int) -> Callable[..., Any]:
    """`network` with its text padded to `length` and masked."""

    def call(**inputs: Any) -> Any:
        states, mask = inputs["encoder_hidden_states"], inputs["encoder_hidden_states_mask"]
        missing = length - states.shape[1]
        inputs["encoder_hidden_states"] = nn.functional.pad(states, (0, 0, 0, missing))
        inputs["encoder_hidden_states_mask"] = nn.functional.pad(mask, (0, missing))
        return network(**inputs)

    return call
