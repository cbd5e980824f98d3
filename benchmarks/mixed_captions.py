"""Forward and backward, captions of 20, 40, 80 and 200 tokens: time padded to 512 over time trimmed."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from benchmarks.passes import forward_backward, largest_difference, network, random_inputs
from benchmarks.timing import Measured, interleaved
from flowloom.nn.varlen import predict

TARGET, TARGET_OVER_LONGEST = 2.4, 1.2
LENGTHS = (20, 40, 80, 200)


def run() -> Measured:
    """Ratio of times; correct when outputs are equal to 1e-5 and the longest as padding costs 1.2 times."""
    model = network()
    latents, noise_level, texts, ids = inputs = random_inputs(LENGTHS)

    def own() -> Tensor:
        return predict(model, latents, noise_level, texts, ids)

    def padded(length: int) -> Callable[[], Tensor]:
        text, mask = inputs.padded(length)
        return lambda: model(latents, noise_level, text, ids, text_mask=mask)

    to_512, to_longest = padded(512), padded(max(LENGTHS))
    difference = max(largest_difference(own, to_512), largest_difference(own, to_longest))
    passes = (forward_backward(model, predicted) for predicted in (own, to_512, to_longest))
    own_seconds, seconds_512, seconds_longest = interleaved(*passes)
    over_longest = seconds_longest / own_seconds
    return Measured(
        ratio=seconds_512 / own_seconds,
        target=TARGET,
        correct=difference < 1e-5 and over_longest >= TARGET_OVER_LONGEST,
        detail={
            "own_s": own_seconds,
            "padded_512_s": seconds_512,
            "padded_longest_s": seconds_longest,
            "ratio_over_longest": over_longest,
            "difference": difference,
        },
    )
