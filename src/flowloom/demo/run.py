"""`flowloom demo`: a few minutes of real training on real images, then a measured grid."""

from __future__ import annotations

import json
import os
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image

from flowloom.config.run import RunConfig
from flowloom.demo.grid import draw_grid
from flowloom.demo.images import CREDIT
from flowloom.demo.images import build as build_images
from flowloom.demo.judge import judge
from flowloom.demo.network import make_models
from flowloom.demo.plan import ENOUGH_STEPS, PLANS, Asked, Plan, fitting
from flowloom.engine.__main__ import run_engine
from flowloom.engine.preview import SampleGenerator, SamplingParams
from flowloom.engine.progress import duration
from flowloom.engine.sample import SampleRequest, load_generator
from flowloom.errors import RunError
from flowloom.files import write_json
from flowloom.run.directory import RunDir
from flowloom.server.serve import default_home
from flowloom.tasks.demo import CFG, NAME, SAMPLER_STEPS, SIZE, demo_sections, folders_in, model_section

SAMPLING = SamplingParams(SIZE, SIZE, steps=SAMPLER_STEPS, cfg=CFG)
AT_ONCE = 9
"""Images generated together, between two lines of progress."""
SPARE = 1.3
"""Factor on the measured time of sampling: for judging, saving, and a machine that gets busier."""
SOON_S = 15.0
"""Seconds of training after which its speed is known."""
Say = Callable[[str], None]


@dataclass(frozen=True)
class Score:
    """The number of images that show their prompt."""

    right: int
    right_colour: int
    total: int

    def __str__(self) -> str:
        share, colour = 100 * self.right / self.total, 100 * self.right_colour / self.total
        return f"{share:5.1f} % colour and shape ({self.right} of {self.total}), {colour:.1f} % colour"


@dataclass
class Terminal:
    """The demo's output."""

    on_event: Callable[[dict[str, Any]], None]
    """Called with every event of the run."""
    say: Say
    move: Say = lambda _line: None
    """Replaces the previous line, for progress."""


@dataclass
class _Watch:
    """Passes on the run's events; warns once if the time is too short for this machine."""

    terminal: Terminal
    seconds: float
    """Seconds of training."""
    step: int = 0
    _first: tuple[float, int] | None = None
    _has_judged: bool = False

    def __call__(self, event: dict[str, Any]) -> None:
        self.terminal.on_event(event)
        if event["kind"] != "step":
            return
        self.step, now = event["step"], time.monotonic()
        if self._first is None:
            self._first = now, self.step
        elif not self._has_judged and now - self._first[0] >= min(SOON_S, self.seconds / 5):
            self._has_judged = True
            speed = (self.step - self._first[1]) / (now - self._first[0])
            self._judge(round(self.seconds * speed))

    def _judge(self, expected: int) -> None:
        if expected < ENOUGH_STEPS:
            self.terminal.say(
                f"slow       About {expected} steps fit into the time. The first colours appear after "
                f"about {ENOUGH_STEPS}, so the images will be close to noise. {_load()}"
            )


def _load() -> str:
    """A sentence about other programs that use this machine."""
    try:
        load, cpus = os.getloadavg()[0], os.cpu_count() or 1
    except OSError:
        return ""
    if load < 1.5 * cpus:
        return ""
    return f"Other programs keep this machine busy (load {load:.0f} on {cpus} processors): end them, or wait."


def demo(runs_dir: Path, minutes: float, terminal: Terminal) -> Path:
    """Train the small Chroma and generate a grid within `minutes`, after making its files; returns its path.

    Images and models are next to `runs_dir`, where the studio's demo has them too.

    Raises:
        RunError: it was stopped before the first step.
    """
    say, runs_dir = terminal.say, runs_dir.absolute()
    data_dir, models_dir = folders_in(runs_dir.parent)
    data = build_images(data_dir, SIZE, lambda done, of: terminal.move(f"images     {done:,} of {of:,} made"))
    say(f"images     {data.num_images:,} in {data_dir}: {CREDIT}")
    base = make_models(models_dir)
    say(f"model      {base}: a small Chroma with random weights")
    started = time.monotonic()
    sections = demo_sections(data_dir, model_section(base, models_dir), minutes)
    say("untrained  generating a few images, for comparison and to measure this machine ...")
    sample_generator = load_generator(
        SampleRequest(base, (), runs_dir, SAMPLING, config=RunConfig.model_validate(sections))
    )
    pace = SPARE * _pace(sample_generator)
    plan = fitting(pace, 60 * minutes)
    baseline = score(_generate(sample_generator, plan.baseline, terminal, "untrained"))
    left = 60 * minutes - (time.monotonic() - started) - pace * (plan.num_images - len(plan.baseline))
    seconds = round(max(30 * minutes, left), 1)
    say(_goal(plan, pace, seconds, minutes))
    run_dir = RunDir.create(f"demo-{time.strftime('%Y%m%d-%H%M%S')}", runs_dir)
    config = RunConfig.model_validate(sections | {"limits": {"max_minutes": seconds / 60}})
    run_dir.write_run(config, "flowloom demo", trainer=NAME)
    say(f"training   in {run_dir.path}; Ctrl-C stops it early and still generates the images")
    watch = _Watch(terminal, seconds)
    begun = time.monotonic()
    run_engine(run_dir, watch)
    headline = (
        f"{watch.step:,} steps of training in {duration(time.monotonic() - begun)}, from random weights"
    )
    if run_dir.latest_checkpoint() is None:
        raise RunError(
            f"{run_dir.path}: it was stopped before its first step, so there is no image to generate."
        )
    sheet, reached = _trained(run_dir, plan, headline, terminal)
    grid = run_dir.path / "grid.png"
    sheet.save(grid)
    _add_sample(run_dir, sheet, watch.step, f"The demo's grid: {plan}")
    say(f"trained    {reached}\nuntrained  {baseline}\ngrid       {grid}")
    say(f"time       {duration(time.monotonic() - started)} in all")
    _say_what_next(run_dir, watch.step, minutes, say)
    return grid


def _pace(sample_generator: SampleGenerator) -> float:
    """Seconds per image, for several generated together."""
    some = ("red heart", "blue circle", "green square")
    sample_generator.generate(some, (1, 2, 3), replace(SAMPLING, steps=1))  # the first use takes longer
    start = time.monotonic()
    sample_generator.generate(some, (1, 2, 3), SAMPLING)
    return (time.monotonic() - start) / len(some)


def _goal(plan: Plan, pace: float, seconds: float, minutes: float) -> str:
    sampling_s = pace * (plan.num_images - len(plan.baseline))
    goal = (
        f"goal       {duration(seconds)} of training, then about {duration(sampling_s)} of generating: {plan}"
    )
    if plan == PLANS[0]:
        return goal
    why = f"{PLANS[0]} do not fit into {minutes:g} min, as an image takes {pace:.1f} s here"
    return f"{goal}\n           ({why})"


def _trained(run_dir: RunDir, plan: Plan, headline: str, terminal: Terminal) -> tuple[Image.Image, Score]:
    """The grid of the trained network's images, and their score."""
    sample_generator = load_generator(SampleRequest(run_dir.path, (), run_dir.path, SAMPLING))
    images = _generate(sample_generator, plan.asked, terminal, "trained")
    free = _images(sample_generator, plan.free, range(len(plan.free))) if plan.free else []
    return draw_grid(images, list(zip(plan.free, free, strict=True)), headline), score(images)


def _add_sample(run_dir: RunDir, sheet: Image.Image, step: int, prompt: str) -> None:
    """Add `sheet` to the previews of `step`, which the studio shows."""
    folder = run_dir.samples_dir(step)
    folder.mkdir(parents=True, exist_ok=True)
    samples_json = folder / "samples.json"
    records: list[Any] = json.loads(samples_json.read_text()) if samples_json.exists() else []
    sheet.save(folder / "grid.png")
    params = asdict(replace(SAMPLING, width=sheet.width, height=sheet.height))
    write_json(samples_json, [*records, {"file": "grid.png", "prompt": prompt, "seed": None, **params}])


def _say_what_next(run_dir: RunDir, step: int, minutes: float, say: Say) -> None:
    command = os.environ.get("FLOWLOOM_AS", "flowloom")
    more = 10 if minutes < 10 else round(3 * minutes)
    if step < ENOUGH_STEPS:
        say(
            f"note       {step:,} steps are few: the first colours appear after about {ENOUGH_STEPS}. Train "
            "longer, or when the machine has less to do."
        )
    home = run_dir.path.parents[1]
    where = "" if default_home().absolute() == home else f" --home {shlex.quote(str(home))}"
    say(f"next       {command} up{where}: the studio, with this run, its grid and its curves")
    say(f"           {command} demo --minutes {more}: longer; the images and the model are kept")


def _generate(
    sample_generator: SampleGenerator, asked: Sequence[Asked], terminal: Terminal, name: str
) -> dict[Asked, Image.Image]:
    """An image for each of `asked`, a few at a time, with progress."""
    images: dict[Asked, Image.Image] = {}
    start = time.monotonic()
    for first in range(0, len(asked), AT_ONCE):
        part = asked[first : first + AT_ONCE]
        prompts = [f"{colour} {shape}" for colour, shape, _ in part]
        seeds = [1000 * seed + first + i for i, (_, _, seed) in enumerate(part)]
        images |= dict(zip(part, _images(sample_generator, prompts, seeds), strict=True))
        left = (time.monotonic() - start) / len(images) * (len(asked) - len(images))
        line = f"{name:<10} {len(images)} of {len(asked)} images generated"
        terminal.move(f"{line}, {duration(left)} left" if left else line)
    return images


def _images(
    sample_generator: SampleGenerator, prompts: Sequence[str], seeds: Sequence[int]
) -> list[Image.Image]:
    return [cast("Image.Image", made) for made in sample_generator.generate(prompts, seeds, SAMPLING)]


def score(images: Mapping[Asked, Image.Image]) -> Score:
    """The score of images by (colour, shape, seed)."""
    verdicts = [(judge(np.asarray(image)), colour, shape) for (colour, shape, _), image in images.items()]
    right = sum((v.colour, v.shape) == (colour, shape) for v, colour, shape in verdicts)
    right_colour = sum(v.colour == colour for v, colour, _ in verdicts)
    return Score(right, right_colour, len(verdicts))
