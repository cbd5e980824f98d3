"""The text of a preflight."""

from __future__ import annotations

from collections.abc import Iterator

from flowloom.engine.estimate.fit_table import table_lines
from flowloom.engine.estimate.plan import verdict
from flowloom.engine.estimate.preflight import GB, Preflight
from flowloom.engine.progress import duration
from flowloom.run.preflight import MemoryReport, PlanReport, SpaceReport, TimeReport


def preflight_text(found: Preflight) -> str:
    """The estimate as text for a terminal."""
    lines: list[str] = []
    for title, rows in (*found.plan.sections, *_sections(found)):
        width = max((len(name) for name, _ in rows), default=0)
        lines += [title, *(f"  {name.ljust(width)}  {value}" for name, value in rows), ""]
    blocks = (
        ("notes", found.plan.notes),
        ("problems", list(map(str, found.plan.problems))),
        ("settings for cards of several sizes", table_lines(found.fits)),
        ("what to change, in this order and together", [*map(str, found.changes), *found.shortfalls]),
    )
    for heading, entries in blocks:
        lines += [heading, *(f"  {entry}" for entry in entries), ""] if entries else []
    return "\n".join([*lines, verdict(found.can_run)])


def _sections(found: Preflight) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    if found.data:
        reasons = [(reason, f"{count:,}") for reason, count in found.data.left_out.items() if count]
        yield "rows left out", reasons or [("none", "")]
    if found.memory:
        yield "memory", _sizes(found.memory)
        if found.memory.plan:
            yield "memory plan", [*_plan_rows(found.memory.plan, found.memory.blocks)]
    if found.disk:
        caches = [(f"cache: {name}", _size(size)) for name, size in found.disk.caches.items()]
        yield "disk", [*_sizes(found.disk), ("checkpoints kept", found.disk.kept_text or ""), *caches]
    if found.time:
        yield "time", [*_time_rows(found.time)]


def _plan_rows(plan: PlanReport, blocks: int | None) -> Iterator[tuple[str, str]]:
    for measure in plan.measures:
        of = f"of {blocks} blocks, " if type(measure.value) is int or measure.value == "ffn" else ""
        yield measure.text, f"{of}saves {_size(measure.saved)}, {measure.slow_down:+.0%} time"
    if not plan.measures:
        yield "nothing to do", "no block recomputes or streams"
    for name, size in plan.host_parts.items():
        yield f"on the host: {name}", _size(size)
    if plan.checkpoint_copy:
        yield "on the host: copy of a checkpoint", f"{_size(plan.checkpoint_copy)} while it is written"
    if plan.host_free is not None:
        yield "on the host: free", _size(plan.host_free)
    yield "slow-down", f"{plan.slow_down:+.0%}"
    yield "speeds", plan.speed


def _sizes(part: SpaceReport) -> list[tuple[str, str]]:
    rows = [(name, _size(size)) for name, size in part.parts.items()]
    of = f", of which {part.usable_share:.0%} are planned with" if isinstance(part, MemoryReport) else ""
    return [*rows, ("in all", _size(part.total)), ("free", f"{_size(part.free)}{of}")]


def _size(size: float) -> str:
    return f"{size / GB:,.2f} GB" if size >= 1e8 else f"{size / 1e6:,.1f} MB"


def _time_rows(found: TimeReport) -> Iterator[tuple[str, str]]:
    if found.samples_per_s is None or found.step_s is None or found.epoch_s is None:
        yield "rate", found.source
        return
    yield "rate", f"{found.samples_per_s:.2f} samples/s, {found.source}"
    yield "step", f"{found.step_s:.2f} s"
    yield "epoch", duration(found.epoch_s)
    if found.total_s:
        yield "training", f"{duration(found.total_s)}: {found.steps:,} steps, {found.epochs:.1f} epochs"
    else:
        yield "training", "until it is stopped"
