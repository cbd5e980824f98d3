"""Changes of a configuration with which it fits into memory, those with the least cost first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from flowloom.config.run import ADAPTERS, RunConfig
from flowloom.engine.estimate.memory_plan import Machine, plan_memory
from flowloom.engine.estimate.networks import Networks
from flowloom.run.preflight import Change


@dataclass(frozen=True)
class _Saving:
    """A key whose value saves memory."""

    key: str
    value: Any
    applies: Callable[[RunConfig], bool]


def _savings(config: RunConfig) -> list[_Saving]:
    """Changes that save memory, those with the least cost in time and quality first."""
    smaller = max(config.dataloader.base_resolution) // 2 // 64 * 64
    return [
        _Saving("memory.checkpointed_parts", "auto", lambda c: c.memory.checkpointed_parts == "ffn"),
        _Saving("memory.checkpointed_blocks", "auto", lambda c: _is_fewer(c.memory.checkpointed_blocks)),
        _Saving("memory.offload_activations", "auto", lambda c: c.memory.offload_activations is False),
        _Saving("cache.text", "disk", lambda c: c.cache.text != "disk"),
        _Saving("cache.latents", "disk", lambda c: c.cache.latents != "disk"),
        _Saving("model.t5_to_8bit", True, lambda c: not c.model.t5_to_8bit and c.cache.text != "disk"),
        _Saving("ema.device", "cpu", lambda c: c.ema.decay is not None and c.ema.device == "same"),
        _Saving("training.train_minibatch", 1, lambda c: c.training.train_minibatch > 1),
        _Saving("optimizer.kind", "adamw8bit", lambda c: c.optimizer.kind in ("adamw", "adamw_bf16")),
        _Saving("parallel.dtype", "bf16", lambda c: c.parallel.dtype == "fp32"),
        _Saving("lora.base_model_quant_level", "8bit", lambda c: _base_level(c) == "full"),
        _Saving("memory.streamed_blocks", "auto", lambda c: _is_fewer(c.memory.streamed_blocks)),
        _Saving("memory.offload_param_count", 0, lambda c: c.memory.offload_param_count > 0),
        _Saving("lora.base_model_quant_level", "4bit", _can_shrink),
        _Saving("optimizer.kind", "adamw_bf16", lambda c: _is_wide(c) and c.optimizer.kind == "adamw8bit"),
        _Saving("memory.fused_backward", True, lambda c: _trains_network(c) and not c.memory.fused_backward),
        _Saving("optimizer.device", "cpu", lambda c: _trains_network(c) and c.optimizer.device == "auto"),
        _Saving("method.kind", "lora", _trains_network),
        _Saving("lora.base_model_quant_level", "8bit", lambda c: _base_level(c) == "full"),
        _Saving(
            "dataloader.base_resolution",
            [smaller],
            lambda c: max(c.dataloader.base_resolution) > smaller >= 256,
        ),
    ]


def _is_fewer(blocks: int | str) -> bool:
    return blocks not in ("auto", "all")


def _base_level(config: RunConfig) -> str | None:
    return config.lora.base_model_quant_level if config.lora and config.method_kind in ADAPTERS else None


def _can_shrink(config: RunConfig) -> bool:
    return _base_level(config) == "8bit" and config.method.base_products == "wide"


def _trains_network(config: RunConfig) -> bool:
    return config.method_kind not in ADAPTERS


def _is_wide(config: RunConfig) -> bool:
    """True if most weights are trained, at a time or in turn, and in float32."""
    return config.method_kind in ("full", "rotation") and config.parallel.trained_dtype == "auto"


def advise(
    config: RunConfig, networks: Networks, machine: Machine, kept: Sequence[str] = ()
) -> tuple[list[Change], bool]:
    """Keys to change together, in this order, until the run fits; and True if it then does.

    Args:
        kept: keys that are not changed.
    """
    plan = plan_memory(config, networks, machine)
    changes: list[Change] = []
    for saving in _savings(config):
        if plan.fits:
            break
        if saving.key in kept or not saving.applies(config):
            continue
        try:
            changed = with_key(config, saving.key, saving.value)
        except ValidationError:
            continue  # excluded by another setting
        if saving.key == "method.kind":
            networks = Networks.from_config(changed)
        then = plan_memory(changed, networks, machine)
        if then.total < plan.total:
            config, plan = changed, then
            changes.append(Change(path=saving.key, value=saving.value, bytes=then.total))
    return changes, plan.fits


def with_key(config: RunConfig, key: str, value: Any) -> RunConfig:
    """`config` with the value of one dotted key changed; a part's other settings go when its kind does."""
    section, name = key.split(".")
    given: dict[str, Any] = config.model_dump()
    kept: dict[str, Any] = {} if key == "optimizer.kind" else given.get(section) or {}
    return RunConfig.model_validate(given | {section: {**kept, name: value}})
