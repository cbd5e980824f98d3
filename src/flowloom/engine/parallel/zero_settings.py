"""DeepSpeed's settings: from the configuration, and from the user's own ds_config.json."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowloom.errors import ConfigError, Problem
from flowloom.files import read_json
from flowloom.json_types import is_object

if TYPE_CHECKING:
    from flowloom.config.run import RunConfig
    from flowloom.engine.state import Precision

KEY = "parallel.deepspeed_config_path"
OURS = {
    "train_batch_size": "dataloader.batch_size",
    "train_micro_batch_size_per_gpu": "training.train_minibatch",
    "gradient_accumulation_steps": "training.train_minibatch",
    "gradient_clipping": "optimizer.max_grad_norm",
    "optimizer": "optimizer.kind",
    "scheduler": "lr_schedule.kind",
    "fp16": "parallel.dtype",
    "bf16": "parallel.dtype",
    "torch_autocast": "parallel.dtype",
    "amp": "parallel.dtype",
    "activation_checkpointing": "memory.checkpointed_blocks",
}
"""Settings that have a key in our configuration."""
PASSED_ON = frozenset({
    "aio", "comms_logger", "communication_data_type", "dump_state", "flops_profiler", "memory_breakdown",
    "prescale_gradients", "steps_per_print", "wall_clock_breakdown", "zero_force_ds_cpu_optimizer",
    "zero_optimization",
})  # fmt: skip
AUTO = "auto"
"""Written by other programs for settings that they fill in."""


def zero_settings(config: RunConfig, precision: Precision) -> dict[str, Any]:
    """The settings for `deepspeed.initialize`.

    Raises:
        ConfigError: the user's file cannot be read, or has settings that do not fit.
    """
    path = config.parallel.deepspeed_config_path
    theirs = _read(Path(path)) if path else {}
    zero = {key: value for key, value in theirs.pop("zero_optimization", {}).items() if value != AUTO}
    stage = config.parallel.zero_stage
    problems = [*_problems(theirs), *_stage_problems(zero, stage)]
    zero = {"stage": stage, **zero}
    problems += _zero_problems(zero)
    if problems:
        raise ConfigError(path or "the configuration", problems)
    import torch

    passed = {key: value for key, value in theirs.items() if key in PASSED_ON and value != AUTO}
    return {
        "steps_per_print": 10**9,
        **passed,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.optimizer.max_grad_norm or 0.0,
        "bf16": {"enabled": precision.compute == torch.bfloat16},
    }


def _read(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise ConfigError(str(path), [Problem(KEY, f"cannot be read: {error}.")]) from error
    if not is_object(content):
        raise ConfigError(str(path), [Problem(KEY, "is no JSON object.")])
    return dict(content)


def _problems(theirs: Mapping[str, Any]) -> Iterator[Problem]:
    for key, value in theirs.items():
        is_off = is_object(value) and value.get("enabled") is False
        if key in OURS and value != AUTO and not is_off:
            yield Problem(f"{KEY}: {key}", f"is set by {OURS[key]}: remove it.")
        elif key not in OURS and key not in PASSED_ON:
            yield Problem(f"{KEY}: {key}", "is no setting of DeepSpeed that can be used here: remove it.")


def _stage_problems(zero: Mapping[str, Any], stage: int) -> Iterator[Problem]:
    if zero.get("stage", stage) != stage:
        message = f"is {zero['stage']}, but parallel.zero_stage is {stage}: set both to the same number."
        yield Problem(f"{KEY}: zero_optimization.stage", message)


def _zero_problems(zero: Mapping[str, Any]) -> Iterator[Problem]:
    """Settings that DeepSpeed itself refuses."""
    from pydantic import ValidationError

    schema: Any = importlib.import_module("deepspeed.runtime.zero.config").DeepSpeedZeroConfig
    try:
        schema(**zero)
    except ValidationError as error:
        for detail in error.errors():
            where = ".".join(str(part) for part in detail["loc"])
            yield Problem(f"{KEY}: zero_optimization.{where}", f"{detail['msg']}.")
