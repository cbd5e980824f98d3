"""Our engine as a trainer backend."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flowloom.config.flow_format.read import load_config
from flowloom.config.flow_format.translate import refused_secrets
from flowloom.config.remote_models import with_model_headers
from flowloom.config.run import RunConfig
from flowloom.errors import ConfigError, Problem
from flowloom.json_types import is_object
from flowloom.model_library.requirements import choices, unfit_for, unfit_models
from flowloom.run.directory import RunDir
from flowloom.run.resume import IMMUTABLE_KEYS
from flowloom.run.task import Command
from flowloom.trainers.base import Preset, Source, TrainerBackend, whole_number

CACHED = {"latents": "disk", "text": "disk"}
"""Encodings on disk, so that the encoders take no memory while the network trains."""
RANK = Source("documentation", "Rank and rate: the example of sd-scripts' docs/flux_train_network.md.")
ROUNDING = Source("paper", "bfloat16 with stochastic rounding: Zamirai et al. 2020, arXiv:2010.06192.")
CALCULATED = "Not measured on such a card; a test checks the memory plan at 512 and 1024 pixels."


def _lora(gb: int, note: str, *sources: Source, level: str = "8bit") -> Preset:
    return Preset(
        name=f"lora-{gb}gb",
        title=f"{gb} GB LoRA",
        note=f"{note} Encodings are cached on disk.",
        config={
            "lora": {"rank": 16, "alpha": 16, "base_model_quant_level": level},
            "training": {"lr": 1e-4, "warmup_steps": 100, "train_minibatch": 1},
            "cache": CACHED,
        },
        sources=(RANK, *sources, Source("judgement", f"Alpha, warm-up, micro-batch: ours. {CALCULATED}")),
    )


PRESETS = [
    _lora(8, "8-bit base model, a part of which is streamed from host memory."),
    _lora(12, "8-bit base model; blocks are recomputed in the backward pass."),
    _lora(
        16,
        "8-bit base model; as many blocks are recomputed as needed.",
        Source(
            "documentation",
            "The card: SimpleTuner's quickstart/CHROMA.md states about 16 GB for rank 16 on 8 bits.",
        ),
    ),
    _lora(24, "Base model in bfloat16; as many blocks are recomputed as needed.", level="full"),
    Preset(
        name="full-16gb",
        title="16 GB full with the host's memory",
        note="All weights, streamed; gradients move to the host, which updates in bfloat16 with stochastic "
        "rounding. Needs about 80 GB of host memory. Encodings are cached on disk.",
        config={
            "training": {"lr": 1e-5, "train_minibatch": 1},
            "dataloader": {"batch_size": 1},
            "optimizer": {"kind": "adamw_bf16", "device": "cpu"},
            "memory": {"fused_backward": True},
            "cache": CACHED,
        },
        sources=(ROUNDING, Source("judgement", f"Rate, batch: ours. {CALCULATED}")),
    ),
    Preset(
        name="full-24gb",
        title="24 GB full by rotation",
        note="A few blocks at a time, replaced every 20 steps, in bfloat16 with stochastic rounding. The "
        "optimizer's states of other blocks take up to 36 GB of host memory. Encodings are cached on disk.",
        config={
            "training": {
                "lr": 1e-5,
                "train_minibatch": 1,
                "change_layer_every": 20,
                "trained_single_blocks": 2,
                "trained_double_blocks": 1,
            },
            "optimizer": {"kind": "adamw_bf16"},
            "cache": CACHED,
        },
        sources=(
            Source("code", "Rotation: lodestone-rock/flow, src/trainer/train_chroma.py, change_layer_every."),
            ROUNDING,
            Source("judgement", f"Rate, blocks, period: ours. {CALCULATED}"),
        ),
    ),
    Preset(
        name="full-8xh100",
        title="8 x H100 full",
        note="All weights, replicated on each GPU: bfloat16 with stochastic rounding, 8-bit moments. "
        "Select all devices when you start it.",
        config={
            "training": {"lr": 1e-5, "train_minibatch": 4, "warmup_steps": 100},
            "dataloader": {"batch_size": 64},
            "model": {"t5_to_8bit": True},
            "optimizer": {"kind": "adamw_lowbit"},
            "parallel": {"dtype": "bf16", "trained_dtype": "bf16"},
            "memory": {"checkpointed_blocks": "all"},
        },
        sources=(
            Source("paper", "Moments in 8 bits: Dettmers et al. 2021, arXiv:2110.02861."),
            ROUNDING,
            Source(
                "judgement", "Rate, batch, warm-up, cards: ours. Not measured; the preflight calculates them."
            ),
        ),
    ),
]


class Flow(TrainerBackend):
    """`python -m flowloom.engine`, one process per device; it writes events and reads control/ itself."""

    name, title, supported_controls = "flow", "FLOW", frozenset({"stop", "checkpoint", "sample"})
    needs_device = uses_all_devices = writes_events = True
    bar_is_epoch = False
    preflight_command: tuple[str, ...] = ("flowloom.cli.main", "preflight", "--json")
    preflight_has_table = True
    immutable_keys: tuple[str, ...] = IMMUTABLE_KEYS

    def schema(self) -> dict[str, Any]:
        return RunConfig.model_json_schema()

    def defaults(self) -> dict[str, Any]:
        return RunConfig().model_dump(mode="json")

    def presets(self) -> list[Preset]:
        return PRESETS

    def check(self, config: dict[str, Any]) -> list[Problem]:
        model = config.get("model")
        problems = refused_secrets(config)
        try:
            loaded = load_config(config, [], Path("config"), with_files=True)
            return [*problems, *unfit_for(with_model_headers(loaded.config))]
        except ConfigError as error:
            unfit = unfit_models(model) if is_object(model) else ()
            return [*problems, *error.problems, *unfit]

    def resolve(self, config: dict[str, Any]) -> RunConfig:
        return load_config(config, [], Path("config")).config

    def prepare(self, config: dict[str, Any], run_dir: RunDir, source: str, name: str = "flow") -> None:
        """`name`: a task that takes the same configuration."""
        loaded = load_config(config, [], Path("config"))
        run_dir.write_run(loaded.config, source, loaded.notes, trainer=name)

    def command(self, run_dir: RunDir, resume: bool, devices: Sequence[str] = ()) -> Command:  # noqa: ARG002
        # The engine itself sees if there is a checkpoint to resume from.
        engine = ["-m", "flowloom.engine", str(run_dir.path)]
        if len(devices) < 2:
            return Command([sys.executable, *engine])
        ranks = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(len(devices))]
        return Command([sys.executable, *ranks, *engine])

    def total_steps(self, config: Any) -> int | None:
        return whole_number(config, "limits", "max_steps")

    def models(self, roots: Sequence[Path]) -> dict[str, list[Path]]:
        return choices(roots)


TRAINER = Flow()
