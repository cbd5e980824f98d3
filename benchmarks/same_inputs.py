"""Forward and backward on equal inputs, 256 image and 40 text tokens: time of diffusers over ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks import rival
from benchmarks.passes import Inputs, forward_backward, largest_difference, network, random_inputs
from benchmarks.timing import Measured, interleaved
from flowloom.nn.chroma import Chroma

TARGET = 1.0


def run() -> Measured:
    """Ratio of times in float32 (bfloat16 in the detail); correct when outputs are equal to 1e-5."""
    ours = network()
    theirs = rival.twin(ours)
    inputs = random_inputs([40])
    difference = largest_difference(*predictions(ours, theirs, inputs, torch.float32))
    our_seconds, their_seconds = seconds(ours, theirs, inputs, torch.float32)
    our_bf16_seconds, their_bf16_seconds = seconds(ours, theirs, inputs, torch.bfloat16)
    return Measured(
        ratio=their_seconds / our_seconds,
        target=TARGET,
        correct=difference < 1e-5,
        detail={
            "our_s": our_seconds,
            "diffusers_s": their_seconds,
            "ratio_bf16": their_bf16_seconds / our_bf16_seconds,
            "difference": difference,
        },
    )


def predictions(
    ours: Chroma, theirs: Any, inputs: Inputs, dtype: torch.dtype
) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """Both predictions, ours and theirs, with weights and inputs in `dtype`."""
    ours.to(dtype)
    theirs.to(dtype)
    latents, text = inputs.latents.to(dtype), torch.stack(inputs.texts).to(dtype)
    return (
        lambda: ours(latents, inputs.noise_level, text, inputs.image_ids),
        lambda: rival.velocity(theirs, latents, inputs.noise_level, text, inputs.image_ids, None),
    )


def seconds(ours: Chroma, theirs: Any, inputs: Inputs, dtype: torch.dtype) -> tuple[float, ...]:
    """Median seconds of a pass with ours and with theirs."""
    by_us, by_them = predictions(ours, theirs, inputs, dtype)
    return interleaved(forward_backward(ours, by_us), forward_backward(theirs, by_them), repeats=15)
