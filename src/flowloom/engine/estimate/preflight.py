"""`flowloom preflight`: requirements of a run before anything is loaded, and changes that make it fit."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from flowloom.config.flow_format.read import LoadedConfig
from flowloom.config.remote_models import with_model_headers
from flowloom.config.run import ADAPTERS, RunConfig
from flowloom.data.buckets import LEFT_OUT
from flowloom.data.cache.setup import kept_captions
from flowloom.data.loader import Dataset
from flowloom.datasets.lint.captions import count_tokens
from flowloom.datasets.lint.check import bucket_uses, open_dataset
from flowloom.engine.disk import disk, disk_changes, disk_hint
from flowloom.engine.estimate.advise import advise
from flowloom.engine.estimate.fit_table import fit_table, plan_report
from flowloom.engine.estimate.memory_plan import (
    Machine,
    MemoryPlan,
    host_problem,
    plan_memory,
    snapshot_hint,
)
from flowloom.engine.estimate.networks import Networks
from flowloom.engine.estimate.plan import Plan, make_plan, steps_per_epoch
from flowloom.engine.estimate.speed import USEFUL_SHARE, speed_of
from flowloom.engine.memory import HEADROOM
from flowloom.errors import FlowloomError
from flowloom.models.device import choose_device
from flowloom.models.family import family_for, image_tokens
from flowloom.models.tokenizer import Tokenize, load_tokenizer
from flowloom.run.directory import RunDir
from flowloom.run.preflight import (
    BucketReport,
    Change,
    DataReport,
    DiskReport,
    FitReport,
    MemoryReport,
    PreflightReport,
    TimeReport,
)

CAPTIONS_COUNTED = 2000
"""Rows whose captions are tokenized, for the mean."""
ROWS_VARIED = 400
"""Rows whose caption variants are counted."""
STEPS_READ = 50
"""Last steps of an earlier run; their median is its rate."""
RUNS_READ = 20
GIB, GB = 2**30, 1e9


@dataclass(frozen=True)
class Target:
    """The machine and folders of the estimate."""

    runs_dir: Path = Path("runs")
    """The folder for the run, with earlier runs and their rates."""
    gpu_gib: float | None = None
    """Memory of the CUDA device that it will run on; None: this machine's device."""
    samples_per_s: float | None = None
    """A known rate."""
    has_table: bool = False
    """Whether to list what fits cards of several sizes."""


class Rate(NamedTuple):
    """Samples per second, and the source of the number."""

    samples_per_s: float
    source: str


@dataclass
class Preflight:
    """The estimate of a run before it starts."""

    plan: Plan
    data: DataReport | None = None
    memory: MemoryReport | None = None
    disk: DiskReport | None = None
    time: TimeReport | None = None
    changes: list[Change] = field(default_factory=list)
    fits: list[FitReport] = field(default_factory=list)
    shortfalls: list[str] = field(default_factory=list)
    """Sentences on room that is missing even with all changes."""

    @property
    def can_run(self) -> bool:
        """True without problems, and if memory and disk suffice."""
        return not self.plan.problems and all(part is None or part.fits for part in (self.memory, self.disk))

    def report(self) -> PreflightReport:
        """The report for `--json` and the studio."""
        return PreflightReport(
            can_run=self.can_run,
            problems=self.plan.problems,
            data=self.data,
            memory=self.memory,
            disk=self.disk,
            time=self.time,
            changes=self.changes,
            fits=self.fits,
            hints=[*self.plan.hints, *self.shortfalls],
        )


def preflight(loaded: LoadedConfig, target: Target) -> Preflight:
    """Estimate the run of `loaded`; no weight is read and nothing is written."""
    config = with_model_headers(loaded.config)
    found = Preflight(make_plan(loaded))
    dataset = found.plan.dataset or _quietly(lambda: open_dataset(config))
    networks = found.plan.networks or _quietly(lambda: Networks.from_config(config))
    device = (
        torch.device("cuda") if target.gpu_gib else _quietly(lambda: choose_device(config.parallel.device))
    )
    if dataset:
        found.data = _data(config, dataset)
    if networks and device:
        gib = target.gpu_gib
        machine = Machine(device, int(gib * GIB)) if gib else Machine.here(device).measured()
        memory = plan_memory(config, networks, machine)
        found.memory, found.changes, found.shortfalls = _memory(config, networks, machine, memory)
        found.plan.problems += [] if memory.fits_host else [host_problem(memory)]
        found.plan.hints += filter(None, [snapshot_hint(memory)])
        found.fits = fit_table(config) if target.has_table else []
        if found.data:
            steps = _total_steps(config, found.data)
            found.disk = disk(config, networks, device, found.data, target.runs_dir, steps)
            found.time = _time(config, networks, device, found.data, target)
            found.changes += disk_changes(found.disk, config)
            found.shortfalls += [] if found.disk.fits else [disk_hint(found.disk)]
    return found


def _quietly(work: Any) -> Any:
    """The result of `work`; None if it fails: the plan lists the problem."""
    try:
        return work()
    except FlowloomError:
        return None


def _data(config: RunConfig, dataset: Dataset) -> DataReport:
    training, placed = dataset.training, dataset.row_buckets
    used = bucket_uses(training, config.dataloader.batch_size)
    reasons = Counter(problem.reason for problem in dataset.metadata.problems)
    reasons.update(reason for one in dataset.sources for reason in Counter(one.left_out).elements())
    tokens, distinct = _text_tokens(config, dataset)
    return DataReport(
        rows=sum(bucket.rows for bucket in used),
        steps_per_epoch=steps_per_epoch(config, dataset),
        buckets=[BucketReport(**asdict(bucket)) for bucket in used],
        left_out={
            f"aspect ratio beyond {config.dataloader.ratio_cutoff:g} to 1": int((placed == LEFT_OUT).sum()),
            "held out for validation": int((dataset.held_out & (placed != LEFT_OUT)).sum()),
            **dict(reasons.most_common()),
        },
        pixels=_encoded_pixels(training) + _reference_pixels(config, training),
        mean_text_tokens=tokens,
        distinct_captions=distinct,
    )


def _encoded_pixels(dataset: Dataset) -> int:
    """Pixels of all images, and of the planes of latents of clips."""
    used = dataset.row_buckets[dataset.row_buckets != LEFT_OUT]
    counts = np.bincount(used, minlength=len(dataset.buckets)).tolist()
    planes = [dataset.clips.planes(b.num_frames) if dataset.clips else 1 for b in dataset.buckets]
    sizes = (b.width * b.height * n for b, n in zip(dataset.buckets, planes, strict=True))
    return sum(count * size for count, size in zip(counts, sizes, strict=True))


def _reference_pixels(config: RunConfig, dataset: Dataset) -> int:
    """Pixels of the reference images of all rows."""
    counts = dataset.metadata.num_references[dataset.row_buckets != LEFT_OUT]
    return int(counts.sum()) * config.dataloader.reference_pixels


def _text_tokens(config: RunConfig, dataset: Dataset) -> tuple[float, int]:
    """Mean tokens of a caption with one of padding, and the number of distinct captions in a cache, both
    estimated from some rows."""
    total = len(dataset.metadata)
    indices = np.unique(np.linspace(0, total - 1, min(total, CAPTIONS_COUNTED)).astype(int))
    rows = [dataset.metadata.row(int(index)) for index in indices]
    captions = [row.caption for row in rows]
    longest = config.model.max_text_tokens
    found = _quietly(lambda: load_tokenizer(Path(config.model.t5_tokenizer_path)))
    tokenize: Tokenize = found[0] if found else lambda caption: [0] * (len(caption) // 4)
    family = family_for(config.model)
    counts = [family.text_length(count_tokens(caption, tokenize) + 1, longest) for caption in captions]
    rows = rows[:: -(-len(rows) // ROWS_VARIED)]
    kept = {caption for row in rows for caption in kept_captions(config, row)}
    return statistics.fmean(counts), round(len(kept) / len(rows) * total)


def _memory(
    config: RunConfig, networks: Networks, machine: Machine, plan: MemoryPlan
) -> tuple[MemoryReport, list[Change], list[str]]:
    fits = plan.total <= plan.room
    found = MemoryReport(
        parts=plan.parts,
        total=plan.total,
        free=machine.free,
        usable_share=HEADROOM,
        fits=fits,
        recomputed_blocks=plan.choice.blocks,
        blocks=networks.params.num_blocks,
        plan=plan_report(plan),
    )
    if fits:
        return found, [], []
    changes, is_enough = advise(config, networks, machine)
    if is_enough:
        return found, changes, []
    least = (changes[-1].bytes if changes else plan.total) or 0
    needed = f"Even so it needs a device with {least / HEADROOM / GB:.1f} GB free; this one has"
    return found, changes, [f"{needed} {machine.free / GB:.1f} GB."]


def _total_steps(config: RunConfig, data: DataReport) -> int | None:
    limits = config.limits
    ends = [limits.max_steps, limits.max_epochs and limits.max_epochs * data.steps_per_epoch]
    return min((end for end in ends if end), default=None)


def _time(
    config: RunConfig, networks: Networks, device: torch.device, data: DataReport, target: Target
) -> TimeReport | None:
    if not data.steps_per_epoch:
        return None
    rate = _known_rate(config, target) or _measured_rate(config, networks, device, data, target)
    if rate is None:
        return TimeReport(samples_per_s=None, source="unknown: give --samples-per-s")
    epoch_s = data.rows / rate.samples_per_s
    step_s = epoch_s / data.steps_per_epoch
    steps = _total_steps(config, data)
    limit_s = config.limits.max_minutes and config.limits.max_minutes * 60
    total_s = min((s for s in (steps and steps * step_s, limit_s) if s), default=None)
    reached = round(total_s / step_s) if total_s else None
    return TimeReport(
        samples_per_s=rate.samples_per_s,
        source=rate.source,
        step_s=step_s,
        epoch_s=epoch_s,
        total_s=total_s,
        steps=reached,
        epochs=reached / data.steps_per_epoch if reached else None,
    )


def _known_rate(config: RunConfig, target: Target) -> Rate | None:
    """The given rate, or that of the newest similar run."""
    if target.samples_per_s:
        return Rate(target.samples_per_s, "as given")
    if target.gpu_gib or not target.runs_dir.is_dir():
        return None
    folders = [path.parent for path in target.runs_dir.glob("*/events.jsonl")]
    folders.sort(key=lambda folder: folder.stat().st_mtime, reverse=True)
    for folder in folders[:RUNS_READ]:
        try:
            is_similar = _speed_settings(RunDir(folder).read_config()) == _speed_settings(config)
        except FlowloomError:
            continue
        rates = _step_rates(folder / "events.jsonl") if is_similar else []
        if rates:
            return Rate(statistics.median(rates), f"measured by {folder}")
    return None


def _speed_settings(config: RunConfig) -> tuple[object, ...]:
    """The settings that determine the speed of a run most."""
    data, model = config.dataloader, config.model.network_path.name
    return (
        config.method_kind,
        model,
        data.base_resolution,
        config.training.train_minibatch,
        config.parallel.device,
    )


def _step_rates(events: Path) -> list[float]:
    """Samples per second of the last steps in `events`."""
    rates: list[float] = []
    with events.open(encoding="utf-8") as file:
        for line in file:
            if '"step"' not in line:
                continue
            try:
                event = json.loads(line)
            except json.JSONDecodeError:
                continue
            if event.get("kind") == "step" and event.get("samples_per_s"):
                rates.append(event["samples_per_s"])
    return rates[-STEPS_READ:]


def _measured_rate(
    config: RunConfig, networks: Networks, device: torch.device, data: DataReport, target: Target
) -> Rate | None:
    """The rate from operations per sample and a matrix product's speed; None for another machine's device."""
    if target.gpu_gib:
        return None
    speed = speed_of(device)
    family = family_for(config.model)
    tokens = image_tokens(family, round((data.pixels or 0) / data.rows)), round(data.mean_text_tokens or 0)
    each = family.flops(networks.params, *tokens)
    work = each.adapter_training if config.method_kind in ADAPTERS else each.full_training
    product = speed.product_flops_per_s / 1e12
    source = f"estimated: {USEFUL_SHARE:.0%} of {product:.2f} TFLOP/s, a matrix product's speed here"
    return Rate(speed.flops_per_s / work, source)
