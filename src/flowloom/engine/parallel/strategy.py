"""The strategy of a run on several devices."""

from __future__ import annotations

from typing import Literal

from flowloom.config.run import RunConfig
from flowloom.config.sharding import unshardable
from flowloom.engine.estimate.memory_plan import Machine, plan_memory
from flowloom.engine.estimate.networks import Networks
from flowloom.engine.memory import free_bytes
from flowloom.engine.parallel.ranks import Ranks
from flowloom.engine.parallel.zero_settings import zero_settings
from flowloom.engine.state import choose_precision
from flowloom.errors import ConfigError, Problem
from flowloom.models.device import choose_device


def with_strategy(config: RunConfig, ranks: Ranks) -> RunConfig:
    """`config` with a `parallel.strategy` that is not `auto`, the same on all ranks; one rank needs none.

    Copies of the network are several times faster than shards, so they are chosen wherever they fit.

    Raises:
        ConfigError: `parallel.shard_ranks` does not divide the number of ranks, or DeepSpeed is not installed
            or refuses its settings.
    """
    if ranks.size == 1:
        return config
    if config.parallel.strategy == "deepspeed":
        from flowloom.engine.parallel.deepspeed import open_deepspeed

        device = choose_device(config.parallel.device)
        open_deepspeed(device)
        zero_settings(config, choose_precision(config, device))
    if config.parallel.strategy != "auto":
        _check_groups(config.parallel.shard_ranks, ranks)
        return config
    must_shard = not any(unshardable(config)) and any(ranks.total(not _fits_one_device(config, ranks)))
    strategy: Literal["ranks", "fsdp"] = "fsdp" if must_shard else "ranks"
    parallel = config.parallel.model_copy(update={"strategy": strategy})
    if must_shard:
        _check_groups(parallel.shard_ranks, ranks)
    return config.model_copy(update={"parallel": parallel})


def _check_groups(shard_ranks: int, ranks: Ranks) -> None:
    if shard_ranks and ranks.size % shard_ranks:
        message = f"{shard_ranks} does not divide the {ranks.size} ranks: set the devices of one node, or 0."
        raise ConfigError("the configuration", [Problem("parallel.shard_ranks", message)])


def _fits_one_device(config: RunConfig, ranks: Ranks) -> bool:
    device = choose_device(config.parallel.device)
    # Ranks on the CPU share its memory.
    capacity = free_bytes(device) // (ranks.size if device.type == "cpu" else 1)
    # Shards are preferred to copies between host and device.
    resident = {"streamed_blocks": 0, "offload_activations": False}
    wanted = {key: value for key, value in resident.items() if getattr(config.memory, key) == "auto"}
    config = config.model_copy(update={"memory": config.memory.model_copy(update=wanted)})
    return plan_memory(config, Networks.from_config(config), Machine(device, capacity)).fits
