"""`flowloom demo`: ten minutes of real training on real pictures, then a measured grid."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from flowloom.demo.captions import COLOURS, SHAPES
from flowloom.demo.grid import draw_grid
from flowloom.demo.judge import judge
from flowloom.demo.network import write_base
from flowloom.demo.pictures import CREDIT
from flowloom.demo.pictures import build as build_pictures
from flowloom.engine.__main__ import run_engine
from flowloom.engine.preview import Drawing
from flowloom.engine.sample import SampleRequest, load_painter
from flowloom.spec.run import RunConfig
from flowloom.spec.rundir import RunDir

ASSETS = Path(__file__).parent / "assets"
SEEDS = (1, 2, 3)
SIZE = 64
DRAWING = Drawing(SIZE, SIZE, steps=24, cfg=4.0)
FREE_PROMPTS = (
    "smiling face", "winking face", "kissing face", "crying face", "full moon", "broken heart", "green apple",
    "purple apple", "orange book",
)  # fmt: skip
Say = Callable[[str], None]


@dataclass(frozen=True)
class Score:
    """How many of the 81 pictures show what was asked for."""

    right: int
    right_colour: int
    total: int

    def __str__(self) -> str:
        share, colour = 100 * self.right / self.total, 100 * self.right_colour / self.total
        return f"{share:5.1f} % colour and shape ({self.right} of {self.total}), {colour:.1f} % colour"


def demo_config(data_dir: Path, base: Path, minutes: float) -> RunConfig:
    """The demo's run: FLOW's own sections, with paths into the assets; over after `minutes`."""
    return RunConfig.model_validate(
        {
            "training": {
                "master_seed": 7,
                "train_minibatch": 32,
                "lr": 1.3e-3,
                "warmup_steps": 50,
                "save_every": 1000,
            },
            "inference": {
                "inference_every": 250,
                "steps": DRAWING.steps,
                "cfg": DRAWING.cfg,
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
            "model": model_section(base),
            "optimizer": {"kind": "adamw", "betas": [0.9, 0.99], "max_grad_norm": 1.0},
            "ema": {"decay": 0.995},
            "lr_schedule": {"kind": "wsd", "decay_share": 0.35, "min_ratio": 0.05},
            "cache": {"latents": "memory", "text": "memory"},
            "limits": {"max_minutes": minutes},
            "parallel": {"dtype": "bf16" if torch.cpu.get_capabilities().get("avx512_bf16") else "fp32"},
            "preview": {"batch_caption": False},
        }
    )


def model_section(base: Path) -> dict[str, Any]:
    """FLOW's `model` section, pointing at the shipped VAE and T5."""
    t5 = ASSETS / "t5"
    return {
        "chroma_path": str(base),
        "vae_path": str(ASSETS / "ae.safetensors"),
        "t5_path": str(t5),
        "t5_config_path": str(t5 / "config.json"),
        "t5_tokenizer_path": str(t5),
        "t5_max_length": 64,
    }


def demo(runs_dir: Path, minutes: float, on_event: Callable[[dict[str, Any]], None], say: Say) -> Path:
    """Train the small Chroma for `minutes`, measure it beside the untrained one; the grid's path."""
    started = time.monotonic()
    folder = runs_dir / "demo-data"
    data = build_pictures(folder, SIZE)
    say(f"{data.num_pictures} pictures in {folder}: {CREDIT}")
    base = folder / "chroma.safetensors"
    if not base.exists():
        say("making a small Chroma with random weights ...")
        write_base(base)
    run_dir = RunDir.create(f"demo-{time.strftime('%Y%m%d-%H%M%S')}", runs_dir)
    config = demo_config(folder, base, minutes)
    run_dir.write_run(config, "flowloom demo")
    say(f"training for {minutes:g} minutes in {run_dir.path}; Ctrl-C stops early and still draws")
    run_engine(run_dir, on_event)
    say("drawing 27 prompts with 3 seeds, by the trained and by the untrained network ...")
    trained, pictures = measure(SampleRequest(run_dir.path, (), run_dir.path, DRAWING))
    untrained, _ = measure(SampleRequest(base, (), run_dir.path, DRAWING, config=config))
    grid = run_dir.path / "grid.png"
    painter = load_painter(SampleRequest(run_dir.path, (), run_dir.path, DRAWING))
    free = painter.draw(FREE_PROMPTS, range(len(FREE_PROMPTS)), DRAWING)
    headline = f"{minutes:g} minutes of training on a CPU, from nothing"
    draw_grid(pictures, list(zip(FREE_PROMPTS, free, strict=True)), headline).save(grid)
    say(f"trained:   {trained}\nuntrained: {untrained}")
    say(f"the pictures: {grid}   ({(time.monotonic() - started) / 60:.1f} minutes in all)")
    return grid


def measure(request: SampleRequest) -> tuple[Score, dict[tuple[str, str, int], Image.Image]]:
    """Draw the 27 prompts for each seed and judge them; score and pictures by (colour, shape, seed)."""
    painter = load_painter(request)
    asked = [(colour, shape, seed) for seed in SEEDS for colour in COLOURS for shape in SHAPES]
    pictures: dict[tuple[str, str, int], Image.Image] = {}
    for start in range(0, len(asked), 27):
        part = asked[start : start + 27]
        prompts = [f"{colour} {shape}" for colour, shape, _ in part]
        seeds = [1000 * seed + i for i, (_, _, seed) in enumerate(part)]
        pictures |= dict(zip(part, painter.draw(prompts, seeds, request.drawing), strict=True))
    return score(pictures), pictures


def score(pictures: dict[tuple[str, str, int], Image.Image]) -> Score:
    """What the judge says of pictures by (colour, shape, seed)."""
    verdicts = [(judge(np.asarray(p)), colour, shape) for (colour, shape, _), p in pictures.items()]
    right = sum((v.colour, v.shape) == (colour, shape) for v, colour, shape in verdicts)
    right_colour = sum(v.colour == colour for v, colour, _ in verdicts)
    return Score(right, right_colour, len(verdicts))
