"""How many blocks must recompute their activations for a step to fit."""

from __future__ import annotations

from typing import Literal

import torch

from flowloom.nn.chroma import ChromaParams
from flowloom.spec.run import RunConfig

ELEMENTS_PER_TOKEN = 25
"""Activations that one block saves for its backward pass, a token, in multiples of hidden_size. Measured."""
HEADROOM = 0.85
"""Share of the free memory to plan with: fragmentation and workspaces take the rest."""


def activation_bytes_per_block(params: ChromaParams, tokens: int, bytes_per_element: int) -> int:
    """What one block keeps for a micro-batch of `tokens` tokens in all."""
    return ELEMENTS_PER_TOKEN * params.hidden_size * tokens * bytes_per_element


def free_bytes(device: torch.device) -> int:
    """Memory that can still be allocated."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
    import os

    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def checkpointed_blocks(
    config: RunConfig, params: ChromaParams, device: torch.device, trained_bytes: int, bytes_per_element: int
) -> int:
    """The number of blocks that `memory.checkpointed_blocks` asks for; with `auto`, as few as fit.

    Args:
        trained_bytes: bytes of the trained weights; gradients and AdamW's moments will take three times that.
    """
    wanted: Literal["auto", "all"] | int = config.memory.checkpointed_blocks
    num_blocks = params.depth + params.depth_single_blocks
    if wanted == "all":
        return num_blocks
    if wanted != "auto":
        return min(wanted, num_blocks)
    image_tokens = max(config.resolutions) ** 2 // 16**2
    tokens = config.training.train_minibatch * (image_tokens + config.model.t5_max_length // 2)
    each = activation_bytes_per_block(params, tokens, bytes_per_element)
    room = max(0.0, HEADROOM * free_bytes(device) - 3 * trained_bytes)
    return max(0, num_blocks - int(room // max(each, 1)))
