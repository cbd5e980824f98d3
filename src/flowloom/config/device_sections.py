"""Sections for the device: memory, data types."""

from __future__ import annotations

from typing import Annotated, Literal

from flowloom.config.flow_format.sections import Count
from flowloom.schema import SIMPLE, Section


class MemorySection(Section):
    """Trade speed for memory."""

    checkpointed_blocks: Annotated[Literal["auto", "all"] | Count, SIMPLE] = "auto"
    """Number of blocks that recompute activations in the backward pass; auto: as few as fit in memory."""
    checkpointed_parts: Literal["auto", "block", "ffn"] = "auto"
    """Part of these blocks that recomputes: all of it, or only the feed-forward part (MLP), which saves less
    memory and time. auto: the feed-forward part, then whole blocks where checkpointed_blocks is auto; whole
    blocks where it is a number."""
    streamed_blocks: Annotated[Literal["auto", "all"] | Count, SIMPLE] = "auto"
    """Number of blocks whose weights stay in host memory and are copied to the device before each use: frozen
    ones, and with optimizer.device cpu also trained ones. auto: as few as fit in memory, on CUDA. Above 0 all
    blocks recompute activations in the backward pass."""
    offload_param_count: Count = 0
    """Largest number of weights that streamed_blocks auto keeps in host memory, as in FLOW's
    `training.offload_param_count`; 0: no limit."""
    offload_activations: Literal["auto"] | bool = "auto"
    """Keep the inputs of checkpointed blocks in host memory until the backward pass; auto: if memory needs
    it, on CUDA. Set to true with checkpointed_blocks auto, all blocks recompute."""
    fused_backward: bool = False
    """Update each weight as soon as its gradient exists, and free the gradient: then few gradients take
    memory at a time. Needs one micro-batch per update, no optimizer.max_grad_norm, and one rank."""
    compile: bool = False
    """Compile each block with torch.compile."""


class ParallelSection(Section):
    """Devices and data types."""

    strategy: Annotated[Literal["auto", "ranks", "fsdp", "deepspeed"], SIMPLE] = "auto"
    """Several devices. ranks: each has the whole network. fsdp: weights, gradients, optimizer states and
    averages are sharded over them. deepspeed: ZeRO, by zero_stage. auto: ranks if the run fits one device,
    otherwise fsdp."""
    shard_ranks: Count = 0
    """fsdp: number of ranks that share one copy of the weights, such as the devices of a node; every group of
    as many has a copy. 0: all ranks."""
    zero_stage: Literal[1, 2, 3] = 2
    """deepspeed: shard the optimizer states (1), the gradients too (2), the weights too (3)."""
    deepspeed_config_path: str = ""
    """deepspeed: a ds_config.json with more of its settings, such as offload_optimizer in
    zero_optimization."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """auto: CUDA, MPS or CPU, the first that is available."""
    dtype: Literal["auto", "bf16", "fp32"] = "auto"
    """Data type of frozen weights and computation; auto: bf16 on CUDA, otherwise fp32."""
    trained_dtype: Literal["auto", "bf16", "fp32"] = "auto"
    """Data type of trained weights on the device; auto: fp32; bf16 for the optimizer with stochastic
    rounding; that of `dtype` with optimizer.device cpu, which has fp32 copies."""
    num_threads: Count = 0
    """CPU threads of torch; 0: torch's default."""
