"""How many floating-point operations Chroma takes, by formula: what MFU divides by.

I image tokens, T text tokens, S = I + T, D hidden size, N blocks, r the ratio of the MLPs. Every token
crosses (4 + 2r) D^2 weights in every block (12 D^2 at r = 4), and a multiplication with an addition counts as
two. Recomputed activations do not count: MFU is about useful work.
"""

from typing import NamedTuple

from flowloom.nn.chroma import ChromaParams


class Flops(NamedTuple):
    """One sample's forward pass, by where the operations are."""

    linear: int
    attention: int
    ends: int
    """The projections into and out of the network."""
    approximator: int
    """Once a noise level, forward only: it is frozen."""

    @property
    def forward(self) -> int:
        """One forward pass."""
        return self.linear + self.attention + self.ends + self.approximator

    @property
    def full_training(self) -> int:
        """Forward, and backward to activations and weights: three times the forward pass."""
        return 3 * (self.linear + self.attention + self.ends) + self.approximator

    @property
    def adapter_training(self) -> int:
        """`full_training` without gradients of frozen weights. The adapter itself, below 1%, is left out."""
        return 2 * self.linear + 3 * self.attention + 2 * self.ends + self.approximator


def flops(params: ChromaParams, image_tokens: int, text_tokens: int) -> Flops:
    """Operations of one sample."""
    tokens, size = image_tokens + text_tokens, params.hidden_size
    blocks = params.depth + params.depth_single_blocks
    wide, layers = params.approximator_hidden_size, params.approximator_depth
    return Flops(
        linear=int(2 * (4 + 2 * params.mlp_ratio) * size**2 * blocks * tokens),
        attention=4 * tokens**2 * size * blocks,
        ends=2 * size * (2 * params.in_channels * image_tokens + params.context_in_dim * text_tokens),
        approximator=2
        * params.num_modulations
        * (params.approximator_in_dim * wide + 2 * layers * wide**2 + wide * size),
    )
