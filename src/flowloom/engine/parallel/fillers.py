"""Micro-batches without content, for ranks that have fewer samples than others.

Where ranks share the weights of a network, every pass through it takes all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from flowloom.engine.objective import LatentBatch
from flowloom.engine.parallel.ranks import Ranks


def fillers_for(sharers: Ranks, own: Sequence[LatentBatch], device: torch.device) -> list[LatentBatch]:
    """So many micro-batches of weight 0 that this rank has as many as the one with the most."""
    fewest, most = sharers.extremes(len(own))
    if fewest == most:
        return []
    # A rank without samples does not know the shape of one.
    blanks = sharers.gathered([_blank(batch) for batch in own[:1]])
    return [blanks[0].to(device)] * (most - len(own))


def _blank(batch: LatentBatch) -> LatentBatch:
    one = replace(batch, token_weight=None).part(0, 1)
    return one.with_each(lambda tensor: torch.zeros_like(tensor, device="cpu"))
