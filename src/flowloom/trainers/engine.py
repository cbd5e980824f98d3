"""Our own engine."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flowloom.config.flow_format.read import load_config
from flowloom.config.flow_format.translate import refused_secrets
from flowloom.config.run import RunConfig
from flowloom.errors import ConfigError, Problem
from flowloom.model_library.requirements import choices, unfit_for, unfit_models
from flowloom.run.directory import RunDir
from flowloom.run.resume import FIXED
from flowloom.trainers.base import Command, Preset, Source, whole_number

LORA: dict[str, Any] = {"lora": {"rank": 16, "alpha": 16}, "training": {"lr": 1e-4, "warmup_steps": 100}}
PRESETS = [
    Preset(
        name="lora-16gb",
        title="16 GB LoRA",
        note="The base in 8 bits; every block recomputed.",
        config={
            "lora": LORA["lora"] | {"base_model_quant_level": "8bit"},
            "training": LORA["training"] | {"train_minibatch": 1},
            "memory": {"checkpointed_blocks": "all"},
        },
        sources=(
            Source("documentation", "Rank and rate: the example of sd-scripts' docs/flux_train_network.md."),
            Source(
                "documentation",
                "The card: SimpleTuner's quickstart/CHROMA.md tells about 16 GB for rank 16 on 8 bits.",
            ),
            Source(
                "judgement", "Alpha, warm-up, micro-batch: ours. Not measured; the preflight calculates it."
            ),
        ),
    ),
    Preset(
        name="full-24gb",
        title="24 GB full by rotation",
        note="A few blocks at a time, chosen anew every 20 steps, in bfloat16 with stochastic rounding.",
        config={
            "training": {
                "lr": 1e-5,
                "train_minibatch": 1,
                "change_layer_every": 20,
                "trained_single_blocks": 2,
                "trained_double_blocks": 1,
            },
            "optimizer": {"kind": "adamw_bf16"},
            "memory": {"checkpointed_blocks": "all"},
        },
        sources=(
            Source("code", "Rotation: lodestone-rock/flow, src/trainer/train_chroma.py, change_layer_every."),
            Source("paper", "bfloat16 with stochastic rounding: Zamirai et al. 2020, arXiv:2010.06192."),
            Source(
                "judgement", "Rate, blocks, period and card: ours. Not measured; the preflight calculates it."
            ),
        ),
    ),
    Preset(
        name="full-8xh100",
        title="8 x H100 full",
        note="All weights at once, whole on each GPU: bfloat16 with stochastic rounding, moments in 8 bits. "
        "Choose all devices to start it on.",
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
            Source("paper", "bfloat16 with stochastic rounding: Zamirai et al. 2020, arXiv:2010.06192."),
            Source(
                "judgement", "Rate, batch, warm-up, cards: ours. Not measured; the preflight calculates them."
            ),
        ),
    ),
]


class Flow:
    """`python -m flowloom.engine`, which writes events and obeys control/ itself."""

    name, title, abilities = "flow", "FLOW", frozenset({"stop", "checkpoint", "sample"})
    needs_device = uses_all_devices = writes_events = True
    bar_is_epoch = False
    examiner: tuple[str, ...] = ("flowloom.cli.main", "preflight", "--json")
    fixed: tuple[str, ...] = FIXED

    def schema(self) -> dict[str, Any]:
        """See Trainer."""
        return RunConfig.model_json_schema()

    def defaults(self) -> dict[str, Any]:
        """See Trainer."""
        return RunConfig().model_dump(mode="json")

    def presets(self) -> list[Preset]:
        """See Trainer."""
        return PRESETS

    def check(self, config: dict[str, Any]) -> list[Problem]:
        """See Trainer."""
        model = config.get("model")
        found = refused_secrets(config)
        try:
            return [*found, *unfit_for(load_config(config, [], Path("config"), with_files=True).config)]
        except ConfigError as error:
            unfit = unfit_models(model) if isinstance(model, dict) else ()
            return [*found, *error.problems, *unfit]

    def prepare(self, config: dict[str, Any], run_dir: RunDir, source: str, name: str = "flow") -> None:
        """See Trainer; `name` is of a task that takes the same configuration."""
        loaded = load_config(config, [], Path("config"))
        run_dir.write_run(loaded.config, source, loaded.notes, trainer=name)

    def command(self, run_dir: RunDir, resume: bool, devices: Sequence[str] = ()) -> Command:  # noqa: ARG002
        """See Trainer; a process for each device. Whether it resumes, the engine sees itself."""
        engine = ["-m", "flowloom.engine", str(run_dir.path)]
        if len(devices) < 2:
            return Command([sys.executable, *engine])
        ranks = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(len(devices))]
        return Command([sys.executable, *ranks, *engine])

    def parse(self, line: str) -> None:
        """See Trainer: the engine writes its events."""

    def total_steps(self, config: Any) -> int | None:
        """See Trainer."""
        return whole_number(config, "limits", "max_steps")

    def samples_per_batch(self, config: dict[str, Any]) -> None:
        """See Trainer: the engine tells its own rate."""

    def models(self, roots: Sequence[Path]) -> dict[str, list[Path]]:
        """See Trainer; told by headers alone."""
        return choices(roots)


TRAINER = Flow()
