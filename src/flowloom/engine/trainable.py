"""The parameters that are trained at a step, a pure function of configuration and step."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from flowloom.config.run import RunConfig
from flowloom.errors import ConfigError, Problem
from flowloom.models.family import expanded, family_for, idle


def rotation_at(config: RunConfig, step: int) -> int:
    """The number of the rotation that update `step`, counted from 0, belongs to."""
    if config.method_kind != "rotation":
        return 0
    assert config.training.change_layer_every is not None
    return step // config.training.change_layer_every


def rotated_blocks(config: RunConfig, num_blocks: Mapping[str, int], rotation: int) -> list[str]:
    """The blocks that `rotation` trains: slices of one seeded permutation of each kind, cycled as FLOW does.

    Args:
        num_blocks: of the network, by kind as the checkpoint names it, in network order.

    Returns:
        names such as `kind.3`, in network order.
    """
    names: list[str] = []
    for kind, available in num_blocks.items():
        order = list(range(available))
        random.Random(f"{config.training.master_seed} {kind}").shuffle(order)
        num_trained = min(trained_blocks(config)[kind], available)
        chosen = [order[(rotation * num_trained + i) % available] for i in range(num_trained)]
        names += [f"{kind}.{index}" for index in sorted(chosen)]
    return names


def trained_blocks(config: RunConfig) -> dict[str, int]:
    """The number of blocks that a rotation trains at a time, by kind as the checkpoint names it."""
    kinds = family_for(config.model).rotated
    return {kind: getattr(config.training, key) or 0 for kind, key in kinds.items()}


def adapted_layers(config: RunConfig) -> list[str]:
    """Parts of the names of the layers that get an adapter; empty without one."""
    named = config.lora.target_layers if config.lora else []
    return expanded(named, family_for(config.model).defaults.lora_targets)


def trainable_names(config: RunConfig, names: Sequence[str]) -> list[str]:
    """Those of the network's parameter `names` that may be trained, in the same order."""
    family = family_for(config.model)
    frozen, unread = tuple(f"{part}." for part in family.defaults.never_trained), idle(family, names)
    return [name for name in names if not name.startswith(frozen) and name not in unread]


def trained_names(config: RunConfig, names: Sequence[str], rotation: int) -> list[str]:
    """Those of the network's parameter `names` that are trained in `rotation`, in the same order.

    Raises:
        ConfigError: nothing would be trained.
    """
    family = family_for(config.model)
    spellings = {name: family.names.in_checkpoint(name) for name in names}
    candidates = trainable_names(config, names)
    kind = config.method_kind
    if kind == "full":
        return candidates
    if kind == "keywords":
        keywords = config.training.trained_layer_keywords
        chosen = [
            name for name in candidates if any(word in name or word in spellings[name] for word in keywords)
        ]
        problem = Problem(
            "training.trained_layer_keywords", f"no parameter's name contains any of {keywords}."
        )
    else:
        num_blocks = {kind: _count(list(spellings.values()), kind) for kind in family.rotated}
        blocks = rotated_blocks(config, num_blocks, rotation)
        always = expanded(config.method.always_trained, family.defaults.always_trained)
        prefixes = tuple(f"{part}." for part in [*blocks, *always])
        chosen = [name for name in candidates if spellings[name].startswith(prefixes)]
        problem = Problem("method.always_trained", "rotation would train nothing.")
    if not chosen:
        raise ConfigError("the configuration", [problem])
    return chosen


def _count(names: Sequence[str], kind: str) -> int:
    return len({name.split(".")[1] for name in names if name.startswith(f"{kind}.")})
