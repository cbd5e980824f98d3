"""Memory of a step by part, and the number of blocks that must recompute for it to fit."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Literal, TypeVar

import torch

from flowloom.config.run import RunConfig
from flowloom.models.family import Sizes, family_for, image_tokens

T = TypeVar("T")

ELEMENTS_PER_TOKEN = 25
"""Activations that one block saves per token for its backward pass, in multiples of hidden_size. Measured."""
HEADROOM = 0.85
"""Share of the free memory to plan with; the rest is for fragmentation and workspaces."""
OPTIMIZER_BYTES = {"adamw": 8.0, "adamw8bit": 2.03, "adamw_bf16": 4.0, "adamw_lowbit": 2.03}
"""Bytes per trained parameter of both moments; the fractions are block-wise scales."""
QUANTIZED_BYTES = {"8bit": 1.0, "4bit": 0.516}
"""Bytes per weight of a quantized base."""


def activation_bytes_per_block(params: Sizes, tokens: int, bytes_per_element: int) -> int:
    """Bytes that one block saves for a micro-batch of `tokens` tokens in total."""
    return ELEMENTS_PER_TOKEN * params.hidden_size * tokens * bytes_per_element


def activation_bytes(params: Sizes, tokens: int, recomputed: int, bytes_per_element: int) -> int:
    """Peak bytes that all blocks save; the first `recomputed` ones save only their input.

    When one of these is recomputed, the activations of the later blocks have been freed.
    """
    blocks = params.num_blocks
    each = activation_bytes_per_block(params, tokens, bytes_per_element)
    inputs = recomputed * params.hidden_size * tokens * bytes_per_element
    return max(blocks - recomputed, min(recomputed, 1)) * each + inputs


def micro_batch_tokens(config: RunConfig) -> int:
    """Image and text tokens of a micro-batch at the largest resolution, with captions of half the maximum."""
    family, longest = family_for(config.model), config.model.t5_max_length
    tokens = image_tokens(family, max(config.resolutions) ** 2) + family.text_length(longest // 2, longest)
    return config.training.train_minibatch * tokens


def optimizer_bytes(config: RunConfig) -> float:
    """Bytes of the optimizer's states per trained parameter."""
    usual = OPTIMIZER_BYTES.get(config.optimizer.kind, OPTIMIZER_BYTES["adamw"])
    return 1.06 if getattr(config.optimizer, "bits", None) == 4 else usual


def free_bytes(device: torch.device) -> int:
    """Memory that can still be allocated."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def checkpointed_blocks(
    config: RunConfig, params: Sizes, device: torch.device, trained_bytes: int, bytes_per_element: int
) -> int:
    """The number of blocks that `memory.checkpointed_blocks` asks for; with `auto`, as few as fit.

    Args:
        trained_bytes: bytes of the trained weights; gradients and AdamW's moments take three times that.
    """
    room = HEADROOM * free_bytes(device) - 3 * trained_bytes
    return blocks_for_room(config, params, room, bytes_per_element)


def streamed_blocks(count: Literal["all"] | int, blocks: Sequence[T]) -> list[T]:
    """`count` of a network's blocks, evenly spread: each is copied while the blocks before it compute."""
    number = len(blocks) if count == "all" else min(count, len(blocks))
    return [blocks[i * len(blocks) // number] for i in range(number)]


def blocks_for_room(config: RunConfig, params: Sizes, room: float, bytes_per_element: int) -> int:
    """`checkpointed_blocks` where `room` bytes are left for activations."""
    wanted: Literal["auto", "all"] | int = config.memory.checkpointed_blocks
    num_blocks = params.num_blocks
    if wanted == "all" or config.memory.streamed_blocks:
        return num_blocks
    if wanted == "auto" and config.memory.offload_activations:
        return num_blocks
    if wanted != "auto":
        return min(wanted, num_blocks)
    each = activation_bytes_per_block(params, micro_batch_tokens(config), bytes_per_element)
    return max(0, num_blocks - int(max(0.0, room) // max(each, 1)))
