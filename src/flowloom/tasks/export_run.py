"""Exports and merges as runs of the studio (tasks/export.py)."""

from __future__ import annotations

from pathlib import Path

from flowloom.engine.export import export_adapter, merge_adapter
from flowloom.run.model_source import name_of
from flowloom.tasks.base import Progress
from flowloom.tasks.export import ExportConfig, MergeConfig, base_of


class _Stopped(Exception):
    """Nothing half-made stays."""


def export_in_a_run(config: ExportConfig, progress: Progress) -> None:
    """Work of the task `export`; its result names the file."""
    source = Path(config.source_path)
    out = _out(config.out_path, f"{name_of(source)}-{config.form}", progress)
    progress.phase("exporting")
    for note in export_adapter(source, config.form, out, config.weights, base_of(config)):
        progress.warn(note)
    _tell(out, progress)


def merge_in_a_run(config: MergeConfig, progress: Progress) -> None:
    """Work of the task `merge`; its result names the file."""
    source = Path(config.source_path)
    out = _out(config.out_path, f"{name_of(source)}-merged", progress)

    def on_tensor(done: int, total: int) -> None:
        progress.step(done, total)
        if progress.is_stopped():
            raise _Stopped

    progress.phase("merging")
    try:
        notes = merge_adapter(source, base_of(config), out, config.strength, config.weights, on_tensor)
    except _Stopped:
        return
    for note in notes:
        progress.warn(note)
    _tell(out, progress)


def _out(wanted: str, name: str, progress: Progress) -> Path:
    out = Path(wanted) if wanted else progress.run_dir.path / "checkpoints" / f"{name}.safetensors"
    out.parent.mkdir(parents=True, exist_ok=True)
    return out


def _tell(out: Path, progress: Progress) -> None:
    progress.save_result({"path": str(out.absolute()), "size": out.stat().st_size})
