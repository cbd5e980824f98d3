"""`flowloom train --dry-run`: the plan of a run and its problems, from names, headers and sizes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from flowloom.config.flow_format.read import LoadedConfig
from flowloom.config.model_files import cached_files
from flowloom.config.remote_models import with_model_headers
from flowloom.config.run import ADAPTERS, InferenceSection, RunConfig
from flowloom.config.unused_keys import idle_keys
from flowloom.data.buckets import LEFT_OUT
from flowloom.data.fetch.image_source import ImageSource
from flowloom.data.loader import Dataset
from flowloom.datasets.build.update import freshness, left_out_message
from flowloom.datasets.load import load_dataset
from flowloom.engine.estimate.networks import META, Networks, encoder_keys, unless_cached
from flowloom.engine.from_cache import missing_from_cache
from flowloom.engine.memory import QUANTIZED_BYTES
from flowloom.engine.preview import clip_size
from flowloom.engine.state import choose_precision
from flowloom.engine.trainable import adapted_layers, trained_blocks
from flowloom.errors import ConfigError, FlowloomError, ImageError, Problem
from flowloom.model_library.requirements import rounded_models, unfit_for, untrained_models
from flowloom.models.device import choose_device
from flowloom.models.family import expanded, family_for
from flowloom.models.quantized import check_products
from flowloom.models.quantized_cache import default_folder

Rows = list[tuple[str, str]]
T = TypeVar("T")

IMAGES_CHECKED = 200
SHOWN = 5


@dataclass
class Plan:
    """Sections of names and values, with notes and problems."""

    sections: list[tuple[str, Rows]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    hints: list[str] = field(default_factory=list)
    """Those of the notes that a user may want to act on before the run starts."""
    dataset: Dataset | None = None
    """None if it cannot be opened."""
    networks: Networks | None = None
    """None if one cannot be opened."""

    def check(self, path: str, work: Callable[[], T]) -> T | None:
        """The result of `work`; None if it fails, with the problem noted."""
        try:
            return work()
        except ConfigError as error:
            self.problems += error.problems
        except FlowloomError as error:
            self.problems.append(Problem(path, str(error)))
        return None


def make_plan(loaded: LoadedConfig) -> Plan:
    """The plan of the run that `loaded` describes; nothing is written and no weight is read."""
    config = with_model_headers(loaded.config)
    plan = Plan(notes=list(loaded.notes), hints=list(idle_keys(config)))
    plan.sections.append(("run", _run_rows(plan, config, loaded.source)))
    plan.sections.append(("networks", _network_rows(plan, config)))
    dataset = plan.dataset = plan.check("dataloader.jsonl_metadata_path", lambda: load_dataset(config))
    ranks, batch_size = int(os.environ.get("WORLD_SIZE", "1")), config.dataloader.batch_size
    updates = min(config.training.updates_per_large_batch, batch_size)
    if batch_size < ranks * updates:
        each = "" if updates == 1 else f", split into {updates} updates,"
        plan.notes.append(
            f"dataloader.batch_size {batch_size}{each} leaves some of the {ranks} ranks without work."
        )
    steps = None
    if dataset:
        steps = steps_per_epoch(config, dataset)
        plan.sections.append(("data", _data_rows(plan, config, dataset)))
        plan.problems += _cache_problems(plan, config, dataset)
        if not (dataset.training.row_buckets != LEFT_OUT).any():
            plan.problems.append(Problem("dataloader", dataset.why_empty))
        elif not dataset.training.has_weight:
            message = "every row has loss_weight 0: set it above 0 for the rows that you want to train."
            plan.problems.append(Problem("dataloader", message))
    plan.sections.append(("schedule", _schedule_rows(config, steps)))
    plan.sections.append(
        ("previews", [*_preview_rows(config)] or [("none", "there is no inference section")])
    )
    plan.sections.append(("results", _result_rows(config)))
    return plan


def _cache_problems(plan: Plan, config: RunConfig, dataset: Dataset) -> Iterator[Problem]:
    """Problems of training from the cache if encoders cannot be opened."""
    for key in encoder_keys(config):
        if key not in cached_files(config) or plan.check(key, partial(unless_cached, config, key)):
            continue
        if missing := missing_from_cache(config, dataset, key):
            path = getattr(config.model, key.removeprefix("model."))
            hint = "Copy the file there, or run 'flowloom cache' where it is."
            yield Problem(key, f"{path} cannot be opened, and {missing} {hint}")
        else:
            plan.notes.append(f"{key}: cannot be opened; the cache has what training needs of it.")


def _run_rows(plan: Plan, config: RunConfig, source: Path) -> Rows:
    device = plan.check("parallel.device", lambda: choose_device(config.parallel.device))
    rows = [
        ("configuration", str(source)),
        ("method", _method(config)),
        ("seed", str(config.training.master_seed)),
    ]
    if device:
        plan.check("method.base_products", lambda: check_products(config.method.base_products, device))
        precision = choose_precision(config, device)
        formats = (str(dtype).removeprefix("torch.") for dtype in (precision.compute, precision.trained))
        rows.append(("device", "{}; frozen weights in {}, trained ones in {}".format(device, *formats)))
    return rows


def _method(config: RunConfig) -> str:
    kind, training = config.method_kind, config.training
    if kind in ADAPTERS and config.lora:
        lora = config.lora
        base = "" if lora.base_model_quant_level == "full" else f", base in {lora.base_model_quant_level}"
        if config.method.base_products != "wide":
            base += f", its products in {config.method.base_products}"
        return (
            f"{kind} of rank {lora.rank}, alpha {lora.alpha:g}, on {', '.join(adapted_layers(config))}{base}"
        )
    if kind == "rotation":
        blocks = " and ".join(
            f"{count} {kind.replace('_', ' ')}" for kind, count in trained_blocks(config).items()
        )
        own = family_for(config.model).defaults.always_trained
        always = ", ".join(expanded(config.method.always_trained, own)) or "nothing else"
        return f"rotation of {blocks}, others every {training.change_layer_every} steps; always {always}"
    if kind == "keywords":
        return f"parameters named {', '.join(training.trained_layer_keywords)}"
    frozen = "".join(f"; {part} stays frozen" for part in family_for(config.model).defaults.never_trained)
    return f"full fine-tune{frozen}"


def _network_rows(plan: Plan, config: RunConfig) -> Rows:
    model, family = config.model, family_for(config.model)
    keys = (f"model.{model.network_key}", *encoder_keys(config))
    names = [family.name, *(key.removeprefix("model.").removesuffix("_path") for key in keys[1:])]
    paths = (getattr(model, key.removeprefix("model.")) for key in keys)
    rows = list(zip(names, paths, strict=True))
    warnings = [
        *rounded_models(model, trains_all=config.method_kind not in ADAPTERS),
        *untrained_models(config),
        *family.notes(model),
    ]
    plan.hints += warnings
    plan.notes += warnings
    unfit = unfit_for(config)
    plan.problems += unfit
    reported = {problem.where for problem in unfit}
    checks: dict[str, Callable[[], Any]] = {
        keys[0]: partial(family.load_network, model.network_path, META, torch.float32),
        **{key: partial(unless_cached, config, key) for key in keys[1:]},
    }
    num_problems = len(plan.problems)
    loaded = {key: plan.check(key, check) for key, check in checks.items() if key not in reported}
    are_all_open = len(loaded) == len(keys) and len(plan.problems) == num_problems
    network, *encoders = (loaded.get(key) for key in keys)
    if network:
        total = sum(weight.numel() for weight in network.parameters())
        networks = plan.check("method", lambda: Networks.from_modules(config, network, encoders))
        rows.append(("parameters", f"{total:,}"))
        if networks:
            rows.append(("trained", f"{networks.trained:,}, {networks.trained / total:.2%} of them"))
            rows += _quantized_rows(config, networks)
            plan.networks = networks if are_all_open else None
    return rows


def _quantized_rows(config: RunConfig, networks: Networks) -> Rows:
    """The size of a quantized base, and the folder that keeps it for the next start."""
    level = config.lora.base_model_quant_level if config.lora and config.method_kind in ADAPTERS else "full"
    if level == "full":
        return []
    inside = sum(networks.block_sizes)
    size = inside * QUANTIZED_BYTES[level] + (networks.total - inside) * torch.bfloat16.itemsize
    is_kept = config.cache.quantized_gib * 2**30 >= size and config.parallel.strategy != "fsdp"
    kept = f", kept in {default_folder()} for the next start" if is_kept else ""
    return [("quantized base", f"{size / 1e9:.1f} GB{kept}")]


def steps_per_epoch(config: RunConfig, dataset: Dataset) -> int:
    """Updates per epoch."""
    order = dataset.training.plan(config.dataloader.batch_size, config.training.master_seed, 0)
    return order.num_updates(config.training.updates_per_large_batch)


def _data_rows(plan: Plan, config: RunConfig, dataset: Dataset) -> Rows:
    summary = dataset.training.summary()
    whole = dataset.summary()
    cutoff = config.dataloader.ratio_cutoff
    order = dataset.training.plan(config.dataloader.batch_size, config.training.master_seed, 0)
    largest = int(np.diff(order.starts).max(initial=0))
    hints = list(_data_hints(dataset))
    plan.hints += hints
    plan.notes += hints
    files = ", ".join(str(one.source or one.path) for one in dataset.sources)
    rows = [
        ("rows", f"{summary['rows']:,} of {files}"),
        ("batches", f"{len(order):,} an epoch, of up to {largest}"),
        ("buckets", ", ".join(f"{size} ({n:,})" for size, n in summary["buckets"].items())),
    ]
    if whole["rows"] != summary["rows"]:
        rows.append(("held out", f"{whole['rows'] - summary['rows']:,} rows for validation"))
    if whole["left_out"]:
        rows.append(("left out", f"{whole['left_out']:,} rows wider or taller than {cutoff:g} to 1"))
    for problem in dataset.metadata.problems[:SHOWN]:
        path = dataset.sources[problem.dataset].path
        plan.notes.append(f"{path}:{problem.line}: left out: {problem.reason}.")
    if whole["unusable"]:
        rows.append(("unusable", f"{whole['unusable']:,} lines; the first are in the notes"))
    rows.append(("images", _check_images(plan, config, dataset)))
    return rows


def _data_hints(dataset: Dataset) -> Iterator[str]:
    """Hints about the sources of `dataset`: images left out, outdated rows."""
    for one in dataset.sources:
        if one.source and one.left_out:
            yield left_out_message(one.source, one.left_out)
        elif (fresh := freshness(one.path)) and fresh.is_outdated:
            yield fresh.message(one.path)


def _check_images(plan: Plan, config: RunConfig, dataset: Dataset) -> str:
    """A sentence on how many checked image files exist; the first missing ones become notes."""
    if config.dataloader.dummy_image:
        return "black ones, by dataloader.dummy_image"
    used = np.flatnonzero(dataset.row_buckets >= 0)
    chosen = (
        used[np.linspace(0, len(used) - 1, min(len(used), IMAGES_CHECKED)).astype(int)] if len(used) else used
    )
    checked = (dataset.metadata.row(int(index)) for index in chosen)
    rows = [row for row in checked if not ImageSource.is_remote(row, dataset.source_of(row).folder)]
    missing: list[str] = []
    images = ImageSource()
    for row in rows:
        try:
            images.get(row, dataset.source_of(row).folder)
        except ImageError as error:
            missing.append(f"{dataset.source_of(row).path}:{row.line}: {error}")
    plan.notes += missing[:SHOWN]
    if len(missing) > config.limits.skipped_percentage * max(len(rows), 1):
        text = f"{len(missing)} of {len(rows)} checked images are missing; the notes name the first."
        plan.problems.append(Problem("dataloader.image_folder_path", text))
    return (
        f"{len(rows) - len(missing)} of {len(rows)} checked files exist"
        if rows
        else "all in stores, not checked"
    )


def _schedule_rows(config: RunConfig, steps_per_epoch: int | None) -> Rows:
    training, limits, optimizer = config.training, config.limits, config.optimizer
    ends = [
        _count(limits.max_steps, "step") if limits.max_steps else "",
        _count(limits.max_epochs, "epoch") if limits.max_epochs else "",
        f"{limits.max_minutes:g} minutes" if limits.max_minutes else "",
    ]
    rows = [("optimizer", f"{optimizer.kind}, weight decay {training.weight_decay:g}")]
    warm_up = f", after {_count(training.warmup_steps, 'step')} of warm-up" if training.warmup_steps else ""
    rows.append(("learning rate", f"{training.lr:g}, {config.lr_schedule.kind}{warm_up}"))
    if config.ema.decay is not None:
        rows.append(("ema", f"decay {config.ema.decay:g}"))
    if steps_per_epoch:
        rows.append(("steps", f"{steps_per_epoch:,} an epoch"))
    rows.append(("ends after", " or ".join(filter(None, ends)) or "nothing: it trains until it is stopped"))
    return rows


def _preview_rows(config: RunConfig) -> Iterator[tuple[str, str]]:
    for section in config.previews:
        yield f"every {section.inference_every:,} steps", _preview(section, config)


def _preview(section: InferenceSection, config: RunConfig) -> str:
    width, height = section.image_dim
    also = " and the batch's caption" if config.preview.batch_caption else ""
    prompts = _count(len(section.prompts), "prompt")
    frames, fps = clip_size(section, config)
    clip = f", {frames} frames at {fps:g} a second" if fps and frames > 1 else ""
    return f"{prompts}{also}, {width}x{height}{clip}, {section.steps} sampler steps, cfg {section.cfg:g}"


def _result_rows(config: RunConfig) -> Rows:
    keep = config.checkpoint
    also = f" and every one at a multiple of {keep.keep_every:,}" if keep.keep_every else ""
    if keep.keep_last != "auto":
        stay = f"the last {keep.keep_last} stay{also}"
    elif config.method_kind in ADAPTERS:
        stay = "all of them stay"
    else:
        stay = f"as many stay as the disk has room for{also}"
    rows = [("checkpoints", f"every {config.training.save_every:,} steps; {stay}")]
    if config.validation.share:
        every = config.validation.every or config.training.save_every
        rows.append(("validation", f"every {every:,} steps"))
    if config.loggers:
        rows.append(("trackers", ", ".join(logger.kind for logger in config.loggers)))
    if config.hub.repo_id:
        rows.append(("hub", config.hub.repo_id))
    if config.mirror.url:
        rows.append(("mirror", config.mirror.url))
    return rows


def verdict(can_train: bool) -> str:
    """The last line of a plan and of a preflight report."""
    return "Ready to train." if can_train else "Cannot train: see above."


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
