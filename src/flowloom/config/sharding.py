"""Settings that do not fit a network whose weights are sharded over the ranks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from flowloom.errors import Problem
from flowloom.optimizers.base import OptimizerSpec

if TYPE_CHECKING:
    from flowloom.config.run import RunConfig


def sharding_contradictions(config: RunConfig) -> Iterator[Problem]:
    """Problems of the `parallel` section with itself and with the other sections."""
    if config.parallel.shard_ranks and config.parallel.strategy == "ranks":
        message = "needs parallel.strategy fsdp: with ranks nothing is sharded."
        yield Problem("parallel.shard_ranks", message)
    if config.parallel.strategy == "fsdp":
        yield from unshardable(config)
    if config.parallel.strategy == "deepspeed":
        yield from _unfit_for_deepspeed(config)
    elif config.parallel.deepspeed_config_path:
        yield Problem("parallel.deepspeed_config_path", "needs parallel.strategy deepspeed.")


def unshardable(config: RunConfig) -> Iterator[Problem]:
    """The settings that prevent this run from being sharded."""
    if not config.optimizer.is_elementwise:
        fitting = (spec for spec in OptimizerSpec.__subclasses__() if spec.is_elementwise)
        kinds = " or ".join(sorted(spec.model_fields["kind"].default for spec in fitting))
        yield Problem("optimizer.kind", f"{config.optimizer.kind} cannot be sharded: use {kinds}.")
    if config.lora and config.lora.base_model_quant_level == "4bit":
        message = "4bit cannot be sharded: use 8bit or full with parallel.strategy fsdp."
        yield Problem("lora.base_model_quant_level", message)
    if config.memory.fused_backward:
        message = "must be false with parallel.strategy fsdp, which sums gradients over the ranks first."
        yield Problem("memory.fused_backward", message)
    if config.parallel.device == "mps":
        yield Problem("parallel.device", "mps cannot be sharded: PyTorch's FSDP2 needs CUDA or a CPU.")


def _unfit_for_deepspeed(config: RunConfig) -> Iterator[Problem]:
    wants_other_format = config.parallel.trained_dtype not in ("auto", config.parallel.dtype)
    checks = (
        (config.optimizer.kind != "adamw", "optimizer.kind", "must be adamw"),
        (config.method_kind == "rotation", "training.change_layer_every", "must be null: ZeRO cannot change"
         " which weights it trains. Use parallel.strategy fsdp"),
        (config.method_kind == "dora" and config.parallel.zero_stage == 3, "parallel.zero_stage",
         "must be 1 or 2 for DoRA, whose export reads the base"),
        (config.lora is not None and config.lora.base_model_quant_level != "full",
         "lora.base_model_quant_level", "must be full"),
        (config.memory.streamed_blocks not in ("auto", 0), "memory.streamed_blocks",
         "must be auto or 0: set offload_param in the ds_config.json"),
        (config.optimizer.device == "cpu", "optimizer.device",
         "must be auto: set offload_optimizer in the ds_config.json"),
        (config.memory.fused_backward, "memory.fused_backward", "must be false"),
        (wants_other_format, "parallel.trained_dtype", "must be auto: DeepSpeed keeps float32 copies"),
        (config.parallel.device == "mps", "parallel.device", "must not be mps"),
    )  # fmt: skip
    for is_unfit, key, message in checks:
        if is_unfit:
            yield Problem(key, f"{message} (parallel.strategy deepspeed).")
