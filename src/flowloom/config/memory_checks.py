"""Settings of memory and optimizer that exclude each other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from flowloom.errors import Problem

if TYPE_CHECKING:
    from flowloom.config.run import RunConfig


def memory_contradictions(config: RunConfig) -> Iterator[Problem]:
    """Problems of streaming, offloads and fused backward."""
    memory = config.memory
    is_streamed = memory.streamed_blocks not in ("auto", 0)
    if is_streamed and config.method_kind == "full" and config.optimizer.device != "cpu":
        message = "streams trained weights with method full: set optimizer.device to cpu, or this to 0."
        yield Problem("memory.streamed_blocks", message)
    moves = {"streamed_blocks": is_streamed, "offload_activations": memory.offload_activations is True}
    for key, is_set in moves.items():
        if is_set and memory.checkpointed_parts == "ffn":
            message = f"must be auto or block with memory.{key}, whose blocks recompute completely."
            yield Problem("memory.checkpointed_parts", message)
    if memory.offload_activations is True and memory.checkpointed_blocks == 0 and not is_streamed:
        message = "needs memory.checkpointed_blocks above 0: it moves the inputs of these blocks."
        yield Problem("memory.offload_activations", message)
    if memory.fused_backward and (reason := _why_not_fused(config)):
        yield Problem("memory.fused_backward", f"cannot be combined with {reason}, or this to false.")


def _why_not_fused(config: RunConfig) -> str:
    if config.optimizer.max_grad_norm is not None:
        return "optimizer.max_grad_norm, which needs all gradients at once: set that to null"
    if config.batching.batch_tokens is not None:
        return "batching.batch_tokens, whose batches have several micro-batches: set that to null"
    if config.batching.pack_aspect_ratios:
        return "batching.pack_aspect_ratios, which trains several batches in an update: set that to false"
    size = largest_update(config)
    if size > config.training.train_minibatch:
        several = f"several micro-batches per update, which has up to {size} samples"
        return f"{several}: set training.train_minibatch to {size}"
    return ""


def largest_update(config: RunConfig) -> int:
    """Samples of the largest update of batches with a set size, over all ranks."""
    own = [section.batch_size for section in config.datasets if section.batch_size]
    largest = max([*(config.batching.sizes or [config.dataloader.batch_size]), *own])
    return -(-largest // config.training.updates_per_large_batch)
