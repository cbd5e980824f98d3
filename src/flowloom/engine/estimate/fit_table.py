"""Settings with which LoRA, rotation and full fine-tunes fit cards of several sizes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from flowloom.config.run import RunConfig
from flowloom.engine.estimate.advise import advise, with_key
from flowloom.engine.estimate.memory_plan import Machine, MemoryPlan, Taken, plan_memory
from flowloom.engine.estimate.networks import Networks
from flowloom.run.preflight import Change, FitReport, MeasureReport, PlanReport

SIZES = (8, 12, 16, 24, 32, 48, 80)
"""Memory of common cards in GiB."""
RESOLUTIONS = (512, 1024)
METHODS: dict[str, dict[str, Any]] = {
    "lora": {"method": {"kind": "lora"}},
    "rotation": {
        "method": {"kind": "rotation"},
        "training": {"change_layer_every": 20, "trained_single_blocks": 2, "trained_double_blocks": 1},
    },
    "full": {"method": {"kind": "full"}},
}
ALIKE = {"cache.text": "disk", "cache.latents": "disk", "training.train_minibatch": 1}
"""Settings of every row."""
KEPT = ("method.kind", "dataloader.base_resolution")
"""Keys that a row of the table does not change: they are its name."""
MEASURES = {
    "memory.checkpointed_parts": "feed-forward recomputes",
    "memory.checkpointed_blocks": "recomputes",
    "memory.offload_activations": "inputs on the host",
    "memory.streamed_blocks": "streams",
    "optimizer.device": "host optimizer",
}
"""A short description of each measure of a plan."""


def plan_report(plan: MemoryPlan) -> PlanReport:
    """`plan` for the browser and `--json`."""
    return PlanReport(
        checkpointed_blocks=plan.choice.blocks,
        checkpointed_ffn=plan.choice.ffn,
        streamed_blocks=plan.choice.streamed,
        offload_activations=plan.choice.is_offloaded,
        measures=[
            MeasureReport(
                path=each.key,
                value=each.value,
                text=_measure_text(each, plan),
                saved=each.saved,
                slow_down=each.slow_down,
            )
            for each in plan.measures
        ],
        slow_down=plan.slow_down,
        host_parts=plan.host_parts,
        host_total=plan.host_total,
        host_free=plan.host_free,
        checkpoint_copy=plan.snapshot,
        speed=plan.speed.source,
        is_measured=plan.speed.is_measured,
    )


def _measure_text(measure: Taken, plan: MemoryPlan) -> str:
    count = plan.choice.ffn if measure.value == "ffn" else measure.value
    return MEASURES[measure.key] + (f" {count}" if type(count) is int else "")


def fit_table(config: RunConfig) -> list[FitReport]:
    """For each size, method and resolution the plan for one image at a time, and the changes that it needs.

    Other settings are those of `config`; encodings are on disk, so that the encoders take no memory.
    """
    found: list[FitReport] = []
    for method, sections in METHODS.items():
        base = RunConfig.model_validate(_over(config.model_dump(), sections))
        for key, value in (
            ("cache.text", "disk"),
            ("cache.latents", "disk"),
            ("training.train_minibatch", 1),
        ):
            base = with_key(base, key, value)
        networks = Networks.from_config(base)
        for resolution in RESOLUTIONS:
            sized = with_key(base, "dataloader.base_resolution", [resolution])
            found += [_fit(sized, networks, method, resolution, gib) for gib in SIZES]
    return found


def _over(given: dict[str, Any], sections: dict[str, Any]) -> dict[str, Any]:
    return given | {name: {**(given.get(name) or {}), **section} for name, section in sections.items()}


def _fit(config: RunConfig, networks: Networks, method: str, resolution: int, gib: int) -> FitReport:
    machine = Machine(torch.device("cuda"), gib * 2**30)
    changes, fits = advise(config, networks, machine, kept=KEPT)
    for change in changes:
        config = with_key(config, change.path, change.value)
    plan = plan_memory(config, networks, machine)
    report = plan_report(plan)
    return FitReport(
        gib=gib,
        method=method,
        resolution=resolution,
        fits=fits,
        total=plan.total,
        changes=changes,
        settings=", ".join(_settings(changes, report)) or "no change",
        plan=report,
    )


def table_lines(fits: Sequence[FitReport]) -> list[str]:
    """The table as text: a line for each method and resolution with the settings for each size."""
    return [
        f"{fit.gib:3d} GB  {fit.method} at {fit.resolution}: {fit_text(fit)}"
        for fit in sorted(fits, key=_order)
    ]


def _order(fit: FitReport) -> tuple[int, int, int]:
    return list(METHODS).index(fit.method), fit.resolution, fit.gib


def fit_text(fit: FitReport) -> str:
    """The settings with which a method fits a card, in a few words."""
    if not fit.fits:
        return f"no: {fit.total / 1e9:.1f} GB"
    return f"{fit.total / 1e9:.1f} GB, {fit.settings}, {fit.plan.slow_down:+.0%} time"


def _settings(changes: Iterable[Change], plan: PlanReport) -> Iterable[str]:
    """Each change and measure in a few words."""
    last = {change.path: change for change in changes}
    for path, change in last.items():
        section, _, name = path.rpartition(".")
        yield {
            "base_model_quant_level": f"{change.value} base",
            "kind": str(change.value),
            "device": f"{section} on {change.value}",
            "fused_backward": "fused backward",
        }.get(name, f"{name} {change.value}")
    yield from (measure.text for measure in plan.measures if measure.path not in last)
