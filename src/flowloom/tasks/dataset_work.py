"""What the tasks of data sets do: the library's work, told as it goes on."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flowloom.config.run import RunConfig
from flowloom.datasets.build.build import BuildReport, build
from flowloom.datasets.build.export import ExportOptions, ExportReport, export
from flowloom.datasets.build.fresh import update
from flowloom.datasets.build.items import Unusable
from flowloom.datasets.build.options import BuildOptions
from flowloom.datasets.build.rows import image_folder
from flowloom.datasets.lint.check import LintOptions, lint
from flowloom.errors import DataError
from flowloom.tasks.base import Progress
from flowloom.tasks.datasets import BuildConfig, ExportConfig, LintConfig, UpdateConfig

LISTED = 200
"""Unusable things and findings of each kind that a result names."""
_VARIABLES = {"endpoint": "AWS_ENDPOINT_URL", "region": "AWS_REGION", "profile": "AWS_PROFILE"}


class BuildStopped(Exception):
    """Asked for: what was read is known to the next try."""


def build_in_a_run(config: BuildConfig, progress: Progress) -> None:
    """Work of the task `dataset-build`; its result counts rows, and names what did not become one."""
    told = config.storage.model_dump()
    os.environ.update({name: told[key] for key, name in _VARIABLES.items() if told[key]})
    tags = {"auto": None, "tags": True, "prose": False}[config.captions]
    options = BuildOptions(
        kind=config.form,
        is_tag_based=tags,
        default_caption=config.default_caption,
        each_line=config.each_line,
        caption_encoding=config.caption_encoding,
        loss_weight=config.loss_weight,
        with_repeats=config.with_repeats,
    )
    progress.phase("reading")
    try:
        progress.save_result(build_told(config.source_path, Path(config.out_path), options, progress))
    except BuildStopped:
        return


def update_in_a_run(config: UpdateConfig, progress: Progress) -> None:
    """Work of the task `dataset-update`; its result is that of a build."""
    progress.phase("reading")
    try:
        progress.save_result(_told(update(Path(config.jsonl_path), _steps_of(progress))))
    except BuildStopped:
        return


def build_told(source: str, out: Path, options: BuildOptions, progress: Progress) -> dict[str, Any]:
    """Build a JSONL, and say how far it is; what a result tells of it.

    Raises:
        BuildStopped: it was asked to stop.
        DataError: see `build`.
    """
    return _told(build(source, out, options, _steps_of(progress)))


def _steps_of(progress: Progress) -> Callable[[BuildReport], None]:
    """Says how far a build is, and ends it where it is asked to stop."""

    def on_progress(report: BuildReport) -> None:
        progress.step(report.num_pictures)
        if progress.is_stopped():
            raise BuildStopped

    return on_progress


def _told(report: BuildReport) -> dict[str, Any]:
    return {
        "output": str(report.output),
        "images_dir": str(report.root) if report.root else None,
        "form": report.kind,
        "why": report.why,
        "num_pictures": report.num_pictures,
        "num_rows": report.num_rows,
        "num_tag_based": report.num_tag_based,
        "remarks": dict(report.remarks),
        **_unusable(report.unusable),
    }


def export_in_a_run(config: ExportConfig, progress: Progress) -> None:
    """Work of the task `dataset-export`; started again, it writes from the beginning."""
    out, marker = Path(config.out_path), progress.run_dir.path / "writing"
    if out.is_dir() and any(out.iterdir()):
        if not marker.exists():
            raise DataError(f"{out} is not an empty folder by now: it stays as it is. Name another one.")
        shutil.rmtree(out)  # what an earlier try of this very run left
    marker.touch()

    def on_progress(report: ExportReport) -> None:
        progress.step(report.num_rows)
        if progress.is_stopped():
            raise BuildStopped

    options = ExportOptions(
        images_dir=Path(config.images_dir) if config.images_dir else None,
        link=config.link,
        name=config.name,
        shard_mib=config.shard_mib,
        with_pictures=config.with_pictures,
    )
    progress.phase("writing")
    try:
        report = export(Path(config.jsonl_path), config.to, out, options, on_progress)
    except BuildStopped:
        return
    result = {"output": str(report.output), "num_rows": report.num_rows, "remarks": dict(report.remarks)}
    progress.save_result(result | _unusable(report.unusable))


def lint_in_a_run(config: LintConfig, progress: Progress) -> None:
    """Work of the task `dataset-lint`; its result is the report, with some findings of each kind."""
    try:
        jsonl, images, unusable = _rows_of(config, progress)
        progress.phase("looking")
        progress.save_result(_lint(config, jsonl, images, progress, unusable) | _unusable(unusable))
    except BuildStopped:
        return


def _rows_of(config: LintConfig, progress: Progress) -> tuple[Path, str, list[Unusable]]:
    """The JSONL to look at, what its names are relative to, and what of a folder did not become a row."""
    source = Path(config.source_path)
    if not source.is_dir():
        return source, config.images_dir or str(image_folder(source, None)), []
    progress.phase("reading")
    jsonl = progress.run_dir.path / "rows.jsonl"
    # A caption that is missing is a finding among others, not a picture that nobody looks at.
    options = BuildOptions(kind=config.form, default_caption="")
    built = build(str(source), jsonl, options, _steps_of(progress))
    return jsonl, str(built.root or source), built.unusable


def _lint(
    config: LintConfig, jsonl: Path, images: str, progress: Progress, unusable: list[Unusable]
) -> dict[str, Any]:
    def on_progress(done: int) -> None:
        progress.step(done)
        if progress.is_stopped():
            raise BuildStopped

    run = RunConfig()
    data = run.dataloader.model_copy(
        update={
            "jsonl_metadata_path": str(jsonl),
            "image_folder_path": images,
            "base_resolution": config.base_resolution,
            "batch_size": config.batch_size,
        }
    )
    model = run.model.model_copy(update={"t5_max_length": config.max_tokens})
    options = LintOptions(
        config=run.model_copy(update={"dataloader": data, "model": model}),
        tokenizer=Path(config.tokenizer_path) if config.tokenizer_path else None,
        with_pictures=config.with_pictures,
        with_urls=config.with_urls,
        near_bits=config.near_bits,
        progress=on_progress,
    )
    report = lint(options).report
    report.add_unreadable([(one.place, one.reason) for one in unusable])
    content = report.as_json()
    some = [finding for kind in report.counts for finding in report.of(kind)[:LISTED]]
    return content | {"findings": [vars(finding) for finding in some], "num_findings": len(report.findings)}


def _unusable(unusable: list[Unusable]) -> dict[str, Any]:
    named = [{"place": one.place, "reason": one.reason} for one in unusable[:LISTED]]
    return {"num_unusable": len(unusable), "unusable": named}
