"""Which noise belongs to which image."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import optimize
from torch import Tensor
from torch.nn.functional import normalize


@torch.no_grad()
def optimal_transport(latents: Tensor, noise: Tensor) -> Tensor:
    """The order (B,) in which `noise[order]` pairs with `latents`, so that paths cross least.

    Minibatch optimal transport (Pooladian et al. 2023, arXiv:2304.14772; Tong et al. 2023, arXiv:2302.00482):
    the assignment with the least sum of cosine distances between flattened rows. A row of zeros has no
    direction; it is equally far from every noise.

    Args:
        latents: (B, ...).
        noise: same shape.
    """
    directions, targets = (normalize(rows.flatten(1).float(), dim=1) for rows in (latents, noise))
    similarity = (directions @ targets.T).cpu().numpy()
    order: NDArray[np.int64] = optimize.linear_sum_assignment(similarity, maximize=True)[1]  # pyright: ignore[reportUnknownVariableType]
    return torch.from_numpy(order).to(latents.device)
