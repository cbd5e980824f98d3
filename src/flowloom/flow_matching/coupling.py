"""Which noise belongs to which image."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import optimize
from torch import Tensor
from torch.nn.functional import normalize


@torch.no_grad()
def similarities(latents: Tensor, noise: Tensor) -> list[Tensor]:
    """The cosine similarity of each of `latents` with all of `noise`: B rows of (N,) float32.

    A row of zeros has no direction; it is equally far from every noise.

    Args:
        latents: (B, ...).
        noise: (N, ...), N at least B; rows of the same shape.
    """
    directions, targets = (normalize(rows.flatten(1).float(), dim=1) for rows in (latents, noise))
    # One at a time: the result must not depend on which other latents this rank has.
    return [targets @ direction for direction in directions]


def optimal_transport(similarity: Tensor) -> Tensor:
    """The order (B,) in which `noise[order]` pairs with latents, so that paths cross least.

    Minibatch optimal transport (Pooladian et al. 2023, arXiv:2304.14772; Tong et al. 2023, arXiv:2302.00482):
    the assignment with the least sum of cosine distances between flattened rows.

    Args:
        similarity: (B, B) of each latents with each noise.
    """
    order: NDArray[np.int64] = optimize.linear_sum_assignment(similarity.cpu().numpy(), maximize=True)[1]  # pyright: ignore[reportUnknownVariableType]
    return torch.from_numpy(order)
