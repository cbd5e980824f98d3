"""`python -m flowloom.trainers.kohya.preflight CONFIG.json`: the needs of a run of sd-scripts, as JSON.

Nothing of sd-scripts is run, no weight is read, nothing is written.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import ceil
from pathlib import Path
from typing import Any

from flowloom.errors import ConfigError, Problem, SourceError, WeightsError
from flowloom.run.preflight import (
    BucketReport,
    Change,
    DataReport,
    DiskReport,
    MemoryReport,
    PreflightReport,
    TimeReport,
)
from flowloom.storage.local_copy import copies_dir
from flowloom.trainers.checkouts import Checkout
from flowloom.trainers.kohya.config import KohyaConfig
from flowloom.trainers.kohya.copies import has_images_in_store, missing_bytes, with_headers
from flowloom.trainers.kohya.files import arguments_of
from flowloom.trainers.kohya.footprint import (
    LATENT_BYTES,
    NOT_COUNTED,
    TEXT_STATES,
    UNKNOWN_SIZE,
    Footprint,
    Weights,
    footprint,
    has_unknown_size,
    kept_files,
    kept_states,
)
from flowloom.trainers.kohya.images import (
    ENLARGED,
    NO_CAPTION,
    OTHER_EXTENSION,
    SIDEWAYS,
    SMALL,
    TWICE,
    Found,
    Reader,
)
from flowloom.trainers.kohya.trainer import TRAINER, checkout_of
from flowloom.trainers.missing_packages import modules_not_found

DEFAULT_STEPS = 1600
"""Steps of sd-scripts if neither steps nor epochs are given."""
HEADROOM = 0.85
"""Share of the free memory to plan with, as for FLOW."""
MODULES = {".avif": ("pillow_avif",), ".jxl": ("jxlpy", "pillow_jxl")}
"""Packages, any of which lets sd-scripts read images of that suffix."""
SHOWN = 20
"""Maximum number of problems about files in a report."""
GIB, GB = 2**30, 1e9
_SAYINGS = {
    NO_CAPTION: "trained with an empty caption, as neither they nor their folder's class_tokens give one",
    OTHER_EXTENSION: "not read, as caption_extension is another one: class_tokens, if any, take their place",
    SIDEWAYS: "trained turned or mirrored, as they stand upright by EXIF alone, which sd-scripts ignores",
    ENLARGED: "scaled up, as they are smaller than their bucket; bucket_no_upscale leaves them small",
    SMALL: "trained without upscaling, with less than half of the resolution's area",
    TWICE: "listed twice in a dataset; sd-scripts uses the first",
}


@dataclass(frozen=True)
class Asked:
    """Limits to check against, if not those of this machine."""

    runs_dir: Path
    gpu_gib: float | None = None
    samples_per_s: float | None = None


def preflight(config: KohyaConfig, asked: Asked) -> PreflightReport:
    """Memory, disk space and steps of a run with `config`."""
    report = PreflightReport(
        can_run=False,
        problems=TRAINER.check(config.model_dump(mode="json")),
        data=None,
        memory=None,
        disk=None,
        time=None,
        changes=[],
        hints=[],
    )
    if report.problems:
        return report
    if has_images_in_store(config):
        # Their sizes would need a read of each image.
        report.hints.append("the images are counted when they are copied: steps and buckets are unknown.")
        read = Found()
    else:
        reader = Reader(config.training.seed, lambda ending: _is_readable(config, ending))
        read = reader.read(config.datasets)
        report.problems += _some(read.problems)
        report.data = _data(config, read)
        report.hints += _hints(config, read)
        report.time = _time(report.data, asked)
    try:
        _add_space(report, config, read, asked)
    except SourceError as error:
        report.problems.append(Problem("storage", str(error)))
    spaces = (report.memory, report.disk)
    report.can_run = not report.problems and all(space is None or space.fits for space in spaces)
    return report


def _add_space(report: PreflightReport, config: KohyaConfig, read: Found, asked: Asked) -> None:
    """Memory and disk, as known from the files' headers."""
    try:
        weights = Weights.of(with_headers(config))
    except WeightsError as error:
        report.hints.append(f"memory and disk space are unknown: {error}")
        return
    taken = footprint(config, weights)
    report.memory = _memory(config, weights, asked)
    if not report.memory.fits:
        report.changes, shortfalls = _advise(config, weights, report.memory.free)
        report.hints += shortfalls
    report.disk = _disk(config, read, taken, report.data, asked.runs_dir)
    if has_unknown_size(config):
        report.hints.append(f"memory and disk are without the adapter: {UNKNOWN_SIZE}")
    if not taken.is_known:
        name = config.training.optimizer_type
        report.hints.append(f"the states of {name} are not known here: they are counted as AdamW's")


def _some(problems: list[Problem]) -> Iterator[Problem]:
    """The first problems, and the number of further ones."""
    yield from problems[:SHOWN]
    if len(problems) > SHOWN:
        yield Problem("datasets", f"and {len(problems) - SHOWN} more of this kind.")


@lru_cache(8)
def _has_one_of(python: Path, path: Path, modules: tuple[str, ...]) -> bool:
    """Cached, because a folder may have thousands of such images."""
    return len(modules_not_found(Checkout(path=path, python=python), list(modules))) < len(modules)


def _is_readable(config: KohyaConfig, ending: str) -> bool:
    """True if the Python of this sd-scripts can read images of a suffix."""
    try:
        checkout = checkout_of(config)
    except ConfigError:
        return False
    return _has_one_of(checkout.python, checkout.path, MODULES[ending])


def _data(config: KohyaConfig, read: Found) -> DataReport:
    """Images, buckets and steps as counted by sd-scripts, on one device."""
    used = Counter[tuple[int, int]]()
    batches = Counter[tuple[int, int]]()
    for (number, bucket), rows in read.rows.items():
        used[bucket] += rows
        batches[bucket] += ceil(rows / config.datasets[number].batch_size)
    each = ceil(read.batches / config.training.gradient_accumulation_steps)
    epochs = config.training.max_train_epochs
    steps = epochs * each if epochs else config.training.max_train_steps or DEFAULT_STEPS
    return DataReport(
        rows=read.rows.total(),
        images=read.num_images,
        repeated=read.repeated,
        regularisation=read.regular,
        batches=read.batches,
        steps_per_epoch=each,
        steps=steps,
        epochs=epochs or (ceil(steps / each) if each else 0),
        buckets=[
            BucketReport(width=width, height=height, rows=rows, batches=batches[width, height])
            for (width, height), rows in sorted(used.items())
        ],
        left_out=dict(read.left_out),
    )


def _hints(config: KohyaConfig, read: Found) -> Iterator[str]:
    """Problems that sd-scripts accepts silently, or logs among hundreds of lines."""
    for what, names in read.remarks.items():
        some = ", ".join(names[:3]) + " ..." * (len(names) > 3)
        yield f"{_SAYINGS[what]}: {some} ({len(names):,})."
    alone = sum(rows == 1 for rows in read.rows.values())
    if alone and any(dataset.batch_size > 1 for dataset in config.datasets):
        yield f"{alone} of {len(read.rows)} buckets have a single image, which is a separate batch."
    if read.regular and not read.repeated:
        yield "all images are regularisation images: sd-scripts uses none of them."
    training, has_epochs = config.training, bool(config.training.max_train_epochs)
    if not training.max_train_steps and not has_epochs:
        yield f"neither steps nor epochs are given: sd-scripts makes {DEFAULT_STEPS} steps."
    if not training.gradient_checkpointing:
        yield "without gradient_checkpointing the activations, which are not counted here, may be the most."
    if config.raw_arguments:
        yield "raw_arguments are not checked, and they override the values of this report."


def _time(data: DataReport, asked: Asked) -> TimeReport:
    rate, steps, epochs = asked.samples_per_s, data.steps or 0, data.epochs
    if not rate or not data.steps_per_epoch:
        return TimeReport(
            samples_per_s=None, source="unknown: give samples_per_s", steps=steps, epochs=epochs
        )
    epoch_s = data.rows / rate
    step_s = epoch_s / data.steps_per_epoch
    return TimeReport(
        samples_per_s=rate,
        source="as given",
        step_s=step_s,
        epoch_s=epoch_s,
        total_s=steps * step_s,
        steps=steps,
        epochs=epochs,
    )


def _memory(config: KohyaConfig, weights: Weights, asked: Asked) -> MemoryReport:
    """Memory of a step."""
    free, where = (int(asked.gpu_gib * GIB), "as asked") if asked.gpu_gib else _free_memory()
    parts = footprint(config, weights).memory
    total = sum(parts.values())
    return MemoryReport(
        parts=parts,
        total=total,
        free=free,
        usable_share=HEADROOM,
        fits=total <= HEADROOM * free,
        is_coarse=True,
        source=f"sizes in the files' headers and the optimizer's states; free: {where}",
        not_counted=list(NOT_COUNTED),
    )


def _advise(config: KohyaConfig, weights: Weights, free: int) -> tuple[list[Change], list[str]]:
    """Keys to change until it fits, and the required device if that is not enough."""
    changes: list[Change] = []
    now = sum(footprint(config, weights).memory.values())
    for key, value in _SAVINGS:
        if now <= HEADROOM * free:
            return changes, []
        changed = _with_key(config, key, value)
        then = sum(footprint(changed, weights).memory.values())
        if then < now and not TRAINER.check(changed.model_dump(mode="json")):
            config, now = changed, then
            changes.append(Change(path=key, value=value, bytes=then))
    if now <= HEADROOM * free:
        return changes, []
    needed = f"Even so it needs a device with {now / HEADROOM / GB:.1f} GB free; this one has"
    return changes, [f"{needed} {free / GB:.1f} GB."]


_SAVINGS: tuple[tuple[str, Any], ...] = (
    ("memory.cache_latents", True),
    ("memory.cache_text_encoder_outputs", True),
    ("training.optimizer_type", "AdamW8bit"),
    ("memory.fp8_base", True),
    ("training.full_bf16", True),
    ("memory.blocks_to_swap", 8),
    ("memory.blocks_to_swap", 16),
    ("training.optimizer_type", "Adafactor"),
)
"""Ordered by their cost in time and quality, cheapest first."""


def _with_key(config: KohyaConfig, key: str, value: Any) -> KohyaConfig:
    section, name = key.split(".")
    given = config.model_dump(mode="json")
    return KohyaConfig.model_validate(given | {section: {**given[section], name: value}})


def _free_memory() -> tuple[int, str]:
    """Free memory of the GPU with the most, or of the machine; and its name."""
    if tool := shutil.which("nvidia-smi"):
        arguments = [tool, "--query-gpu=memory.free", "--format=csv,noheader,nounits"]
        done = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=20)
        sizes = [int(line) for line in done.stdout.split() if line.isdecimal()]
        if sizes:
            return max(sizes) * 2**20, "the card with the most"
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return free, "main memory, as there is no card here"


def _disk(
    config: KohyaConfig, read: Found, taken: Footprint, data: DataReport | None, runs_dir: Path
) -> DiskReport:
    """Checkpoints, states, and caches next to the images if they are on the same disk."""
    home = _existing(runs_dir)
    steps = (data.steps if data else config.training.max_train_steps) or 0
    epochs = (data.epochs if data else config.training.max_train_epochs) or 0
    kept = kept_files(config, steps, epochs)
    caches = {name: size for name, size in _caches(config, read, home.stat().st_dev).items() if size}
    parts = {
        "checkpoints": kept * taken.weights,
        "states": kept_states(config, steps, epochs) * taken.state,
        "copies from the bucket": missing_bytes(config) if _is_same_disk(home, copies_dir()) else 0,
        **caches,
    }
    total, free = sum(parts.values()), shutil.disk_usage(home).free
    return DiskReport(
        parts={name: size for name, size in parts.items() if size},
        checkpoint=taken.weights,
        state=taken.state,
        kept=kept,
        caches=caches,
        total=total,
        free=free,
        fits=total <= free,
    )


def _existing(path: Path) -> Path:
    """The folder `path`, or the closest one above it."""
    return next(each for each in (path.absolute(), *path.absolute().parents) if each.is_dir())


def _is_same_disk(home: Path, other: Path) -> bool:
    return _existing(other).stat().st_dev == home.stat().st_dev


def _caches(config: KohyaConfig, read: Found, device: int) -> dict[str, int]:
    """Bytes of the caches next to the images, by kind."""
    values = arguments_of(config, Path())
    flips = any(subset.flip_aug for dataset in config.datasets for subset in dataset.subsets)
    latent = LATENT_BYTES.get(config.family, 16 * 4) * (2 if flips else 1)
    text = TEXT_STATES.get(config.family, 0)
    here = [folder for folder in read.files if folder.stat().st_dev == device]
    pixels = sum(read.bucket_pixels[folder] for folder in here)
    files = sum(read.files[folder] for folder in here)
    return {
        "latents": pixels // 64 * latent if values.get("cache_latents_to_disk") else 0,
        "caption states": files * text if values.get("cache_text_encoder_outputs_to_disk") else 0,
    }


def main(arguments: Sequence[str]) -> int:
    """Print the report; always 0."""
    parser = argparse.ArgumentParser(prog="flowloom.trainers.kohya.preflight", description=__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"))
    parser.add_argument("--gpu-gib", type=float)
    parser.add_argument("--samples-per-s", type=float)
    given = parser.parse_args(arguments)
    config = KohyaConfig.model_validate_json(given.config.read_bytes())
    found = preflight(config, Asked(given.runs_dir, given.gpu_gib, given.samples_per_s))
    sys.stdout.write(f"{found.model_dump_json()}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
