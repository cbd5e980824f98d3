"""The demo: our engine with a built-in configuration, images and a small model."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import flowloom
from flowloom.config.flow_format.read import load_config
from flowloom.config.run import RunConfig
from flowloom.errors import ConfigError, Problem
from flowloom.json_types import is_object
from flowloom.run.directory import RunDir
from flowloom.run.task import Command
from flowloom.tasks.base import FormTask
from flowloom.trainers.engine import TRAINER as FLOW

ASSETS = Path(flowloom.__file__).parent / "demo" / "assets"
NAME = "demo"
SIZE, SAMPLER_STEPS, CFG = 64, 24, 4.0
MINUTES = 10.0


def demo_sections(data_dir: Path, model: dict[str, Any], minutes: float = MINUTES) -> dict[str, Any]:
    """Configuration of the demo, in FLOW's sections; it ends after `minutes`."""
    return {
        "training": {
            "master_seed": 7,
            "train_minibatch": 32,
            "lr": 1.3e-3,
            "warmup_steps": 50,
            "save_every": 1000,
        },
        "inference": {
            "inference_every": 250,
            "steps": SAMPLER_STEPS,
            "cfg": CFG,
            "prompts": ["red heart", "blue circle", "green square", "grinning face"],
            "image_dim": [SIZE, SIZE],
        },
        "dataloader": {
            "batch_size": 32,
            "jsonl_metadata_path": str(data_dir / "data.jsonl"),
            "image_folder_path": str(data_dir),
            "base_resolution": [SIZE],
            "resolution_step": 16,
            "uncond_percentage": 0.1,
        },
        "model": model,
        "optimizer": {"kind": "adamw", "betas": [0.9, 0.99], "max_grad_norm": 1.0},
        "ema": {"decay": 0.995},
        "lr_schedule": {"kind": "wsd", "decay_share": 0.35, "min_ratio": 0.05},
        "cache": {"latents": "memory", "text": "memory"},
        "limits": {"max_minutes": minutes},
        "parallel": {"dtype": "bf16" if _has_bf16() else "fp32"},
        "preview": {"batch_caption": False},
    }


def folders_in(home: Path) -> tuple[Path, Path]:
    """Folders of the demo's images and models below `home`, for the command and the studio."""
    return home / "data" / NAME, home / "models" / NAME


def model_section(base: Path, encoders: Path = ASSETS) -> dict[str, Any]:
    """FLOW's `model` section, pointing at the VAE and the T5 in `encoders`."""
    t5 = encoders / "t5"
    return {
        "chroma_path": str(base),
        "vae_path": str(encoders / "ae.safetensors"),
        "t5_path": str(t5),
        "t5_config_path": str(t5 / "config.json"),
        "t5_tokenizer_path": str(t5),
        "t5_max_length": 64,
    }


def _has_bf16() -> bool:
    """True if the CPU has bf16 instructions; otherwise fp32 is faster."""
    try:
        return "avx512_bf16" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


class _DemoTask(FormTask[RunConfig]):
    """Accepts overrides of the demo's configuration; its files are made when it starts."""

    def check(self, config: dict[str, Any]) -> list[Problem]:
        try:
            load_config(config, [], Path("config"))
        except ConfigError as error:
            return list(error.problems)
        return []

    def prepare(self, config: dict[str, Any], run_dir: RunDir, source: str) -> None:
        home = run_dir.path.absolute().parents[1]
        data, models = folders_in(home)
        sections = demo_sections(data, model_section(models / "chroma.safetensors", models))
        overrides = {name: keys for name, keys in config.items() if is_object(keys)}
        merged = {name: sections.get(name, {}) | keys for name, keys in overrides.items()}
        FLOW.prepare(sections | config | merged, run_dir, source, self.name)

    def command(self, run_dir: RunDir, resume: bool, devices: Sequence[str] = ()) -> Command:  # noqa: ARG002
        return Command([sys.executable, "-m", "flowloom.demo", str(run_dir.path)])


DEMO = _DemoTask(
    name=NAME,
    title="Demo",
    kind="training",
    config_type=RunConfig,
    supported_controls=FLOW.supported_controls,
)
