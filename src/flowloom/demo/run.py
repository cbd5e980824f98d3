"""`flowloom demo`: ten minutes of real training on real pictures, then a measured grid."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from flowloom.chores.demo import CFG, SAMPLER_STEPS, SIZE, demo_sections, model_section
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

SEEDS = (1, 2, 3)
DRAWING = Drawing(SIZE, SIZE, steps=SAMPLER_STEPS, cfg=CFG)
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
    config = RunConfig.model_validate(demo_sections(folder, model_section(base), minutes))
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
