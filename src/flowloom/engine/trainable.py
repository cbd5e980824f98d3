"""Which parameters are trained at a step: a pure function of the configuration and the step."""

from __future__ import annotations

import random
from collections.abc import Sequence

from flowloom.config.run import RunConfig
from flowloom.errors import ConfigError, Problem
from flowloom.models.family import family_for


def rotation_at(config: RunConfig, step: int) -> int:
    """The number of the rotation's turn that update `step`, counted from 0, belongs to."""
    if config.method_kind != "rotation":
        return 0
    assert config.training.change_layer_every is not None
    return step // config.training.change_layer_every


def rotated_blocks(config: RunConfig, num_double: int, num_single: int, rotation: int) -> list[str]:
    """The blocks that `rotation` trains: slices of one seeded permutation of each kind, cycled as FLOW does.

    Returns:
        names such as `double_blocks.3`, in network order.
    """
    training = config.training
    names: list[str] = []
    counts = (
        ("double_blocks", num_double, training.trained_double_blocks or 0),
        ("single_blocks", num_single, training.trained_single_blocks or 0),
    )
    for kind, available, wanted in counts:
        order = list(range(available))
        random.Random(f"{training.master_seed} {kind}").shuffle(order)
        wanted = min(wanted, available)
        drawn = [order[(rotation * wanted + i) % available] for i in range(wanted)]
        names += [f"{kind}.{index}" for index in sorted(drawn)]
    return names


def trained_names(config: RunConfig, names: Sequence[str], rotation: int) -> list[str]:
    """Those of the network's parameter `names` that are trained in `rotation`, in the same order.

    Raises:
        ConfigError: nothing would be trained.
    """
    family = family_for(config.model)
    frozen = tuple(f"{part}." for part in family.defaults.never_trained)
    known_as = {name: family.names.in_checkpoint(name) for name in names}
    candidates = [name for name in names if not name.startswith(frozen)]
    kind = config.method_kind
    if kind == "full":
        return candidates
    if kind == "keywords":
        keywords = config.training.trained_layer_keywords
        chosen = [
            name for name in candidates if any(word in name or word in known_as[name] for word in keywords)
        ]
        what = Problem("training.trained_layer_keywords", f"no parameter's name contains any of {keywords}.")
    else:
        num_double, num_single = (
            _count(list(known_as.values()), kind) for kind in ("double_blocks", "single_blocks")
        )
        blocks = rotated_blocks(config, num_double, num_single, rotation)
        prefixes = tuple(f"{part}." for part in [*blocks, *config.method.always_trained])
        chosen = [name for name in candidates if known_as[name].startswith(prefixes)]
        what = Problem("method.always_trained", "rotation would train nothing.")
    if not chosen:
        raise ConfigError("the configuration", [what])
    return chosen


def _count(names: Sequence[str], kind: str) -> int:
    return len({name.split(".")[1] for name in names if name.startswith(f"{kind}.")})
