"""Operations and activations of a network, for estimates; torch is not imported."""

from __future__ import annotations

from typing import NamedTuple


class Flops(NamedTuple):
    """Operations of one sample's forward pass, by part."""

    linear: int
    attention: int
    ends: int
    """The projections into and out of the network."""
    frozen: int = 0
    """Parts that are never trained and get no gradient."""

    @property
    def forward(self) -> int:
        """One forward pass."""
        return self.linear + self.attention + self.ends + self.frozen

    @property
    def full_training(self) -> int:
        """Forward, and backward to activations and weights: three times the forward pass."""
        return 3 * (self.linear + self.attention + self.ends) + self.frozen

    @property
    def adapter_training(self) -> int:
        """`full_training` without gradients of frozen weights. The adapter itself, below 1%, is left out."""
        return 2 * self.linear + 3 * self.attention + 2 * self.ends + self.frozen


class Activations(NamedTuple):
    """The activations that a block saves for its backward pass, for each token in multiples of the width."""

    kept: float
    """Of a block that recomputes nothing; one that recomputes completely keeps its input."""
    without_ffn: float
    """Of a block that recomputes its feed-forward part."""
    ffn_cost: float
    """Share of a forward pass that is computed again where every block recomputes its feed-forward part."""
    block_cost: float
    """Share of a forward pass that is computed again where every block recomputes."""
    ends: float = 0.0
    """Of the parts of the network that are not blocks."""
