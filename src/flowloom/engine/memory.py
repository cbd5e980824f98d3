"""Bytes that the parts of a step take, as formulas."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

import torch

from flowloom.config.run import RunConfig
from flowloom.data.dataset import clip_rules
from flowloom.data.references import most_references
from flowloom.models.family import Activations, Sizes, family_for, image_tokens

T = TypeVar("T")

MEMINFO = Path("/proc/meminfo")

HEADROOM = 0.85
"""Share of the free memory to plan with; the rest is for fragmentation and workspaces."""
OPTIMIZER_BYTES = {"adamw": 8.0, "adamw8bit": 2.03, "adamw_bf16": 4.0, "adamw_lowbit": 2.03}
"""Bytes per trained parameter of both moments; the fractions are block-wise scales."""
QUANTIZED_BYTES = {"8bit": 1.0, "4bit": 0.516}
"""Bytes per weight of a quantized base."""


class Choice(NamedTuple):
    """How blocks are run: the part of a memory plan that is free to choose without another result."""

    blocks: int = 0
    """Blocks that recompute completely."""
    ffn: int = 0
    """Further blocks that recompute their feed-forward part."""
    streamed: int = 0
    """Blocks whose frozen weights are in host memory."""
    is_offloaded: bool = False
    """True if the inputs of the blocks that recompute completely are in host memory."""


def input_bytes(sizes: Sizes, tokens: int, bytes_per_element: int) -> int:
    """Bytes of a block's input for a micro-batch of `tokens` tokens in total."""
    return sizes.hidden_size * tokens * bytes_per_element


def activation_bytes(activations: Activations, each_input: int, num_blocks: int, choice: Choice) -> int:
    """Peak bytes that all blocks save for the backward pass.

    When a block is recomputed completely, the activations of the later blocks have been freed.

    Args:
        each_input: see `input_bytes`.
    """
    inputs = min(choice.blocks, 2) if choice.is_offloaded else choice.blocks
    others = choice.ffn * activations.without_ffn
    others += (num_blocks - choice.blocks - choice.ffn) * activations.kept
    if choice.ffn:
        others += activations.kept - activations.without_ffn
    in_blocks = inputs + max(others, activations.kept if choice.blocks else 0)
    return int(each_input * (in_blocks + activations.ends))


def sample_tokens(config: RunConfig) -> tuple[int, int]:
    """Tokens of the largest image or longest clip, with references, and of a caption of half the maximum."""
    family, longest = family_for(config.model), config.model.max_text_tokens
    clips = clip_rules(config)
    planes = clips.planes(clips.lengths[-1]) if clips else 1
    images = planes * image_tokens(family, max(config.resolutions) ** 2)
    images += most_references(config) * image_tokens(family, config.dataloader.reference_pixels)
    return images, family.text_length(longest // 2, longest)


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


def free_host_bytes() -> int | None:
    """Host memory that can still be allocated, file caches included; None where it is not reported."""
    try:
        lines = MEMINFO.read_text().splitlines()
    except OSError:
        return None
    sizes = (int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    return next((size * 1024 for size in sizes), None)


def streamed_blocks(count: Literal["all"] | int, blocks: Sequence[T]) -> list[T]:
    """`count` of a network's blocks, evenly spread: each is copied while the blocks before it compute."""
    number = len(blocks) if count == "all" else min(count, len(blocks))
    return [blocks[i * len(blocks) // number] for i in range(number)]
