"""Our own engine."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from flowloom.errors import ConfigError, Problem
from flowloom.spec.flow_json import load_config
from flowloom.spec.resume import FIXED
from flowloom.spec.run import RunConfig
from flowloom.spec.rundir import RunDir
from flowloom.trainers.base import Command, Preset

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
    ),
]
MAX_HEADER = 100_000_000
"""Bytes; the format allows no longer header."""
CHROMA = "distilled_guidance_layer.in_proj.weight"
VAE = "decoder.conv_in.weight"
T5 = "encoder.block.0.layer.0.SelfAttention.q.weight"


class Flow:
    """`python -m flowloom.engine`, which writes events and obeys control/ itself."""

    name, title, abilities = "flow", "FLOW", frozenset({"stop", "checkpoint", "sample"})
    needs_device = writes_events = True
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
        try:
            load_config(config, [], Path("config"), with_files=True)
        except ConfigError as error:
            return list(error.problems)
        return []

    def prepare(self, config: dict[str, Any], run_dir: RunDir, source: str, name: str = "flow") -> None:
        """See Trainer; `name` is of a chore that takes the same configuration."""
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

    def models(self, roots: Sequence[Path]) -> dict[str, list[Path]]:
        """See Trainer; told by the names of tensors, from headers alone."""
        marks = {"model.chroma_path": CHROMA, "model.vae_path": VAE, "model.t5_path": T5}
        found: dict[str, list[Path]] = {key: [] for key in marks}
        for path in sorted(_weights_below(roots)):
            names = _tensor_names(path)
            for key, mark in marks.items():
                if any(name.endswith(mark) for name in names):
                    found[key].append(path)
        return found


def _weights_below(roots: Sequence[Path]) -> Iterable[Path]:
    return (path for root in roots for suffix in ("safetensors", "sft") for path in root.rglob(f"*.{suffix}"))


def _tensor_names(path: Path) -> Collection[str]:
    """From the JSON that a safetensors file begins with; of a damaged file, none."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            names = json.loads(file.read(length)) if length <= MAX_HEADER else {}
    except (OSError, ValueError):
        return ()
    return names.keys() if isinstance(names, dict) else ()


TRAINER = Flow()
