"""Forward and backward, a caption of 40 tokens: time of diffusers at 512 masked tokens over ours, trimmed."""

from __future__ import annotations

from torch import Tensor

from benchmarks import rival
from benchmarks.passes import forward_backward, largest_difference, network, random_inputs
from benchmarks.timing import Measured, interleaved
from flowloom.nn.varlen import predict

TARGET = 2.8


def run() -> Measured:
    """Ratio of times; correct when the outputs are equal to 1e-5."""
    ours = network()
    theirs = rival.twin(ours)
    latents, noise_level, texts, ids = inputs = random_inputs([40])
    text, mask = inputs.padded(512)

    def trimmed() -> Tensor:
        return predict(ours, latents, noise_level, texts, ids)

    def padded() -> Tensor:
        return rival.velocity(theirs, latents, noise_level, text, ids, mask)

    difference = largest_difference(trimmed, padded)
    our_seconds, their_seconds = interleaved(
        forward_backward(ours, trimmed), forward_backward(theirs, padded)
    )
    return Measured(
        ratio=their_seconds / our_seconds,
        target=TARGET,
        correct=difference < 1e-5,
        detail={"our_s": our_seconds, "diffusers_s": their_seconds, "difference": difference},
    )
