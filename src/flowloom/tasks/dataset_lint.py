"""Lint a dataset: damaged and missing files, captions, duplicates, buckets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from flowloom.config.run import RunConfig
from flowloom.datasets.build.options import BuildOptions, Kind
from flowloom.errors import Problem
from flowloom.schema import Section, ui
from flowloom.tasks.base import FunctionTask, Progress
from flowloom.tasks.dataset_build import MAX_LISTED, build_progress, source_problems, unusable_summary

if TYPE_CHECKING:
    from flowloom.datasets.build.items import Unusable


class LintConfig(Section):
    """Options of `flowloom dataset lint`."""

    source_path: str
    """FLOW's JSONL, or a folder of images with captions."""
    form: Kind = "auto"
    """Format of a folder; auto: detected. kohya: numbers in folder names are repeats."""
    images_dir: str | None = None
    """Folder that file names are relative to; null: as recorded when the JSONL was built."""
    # Buckets are created one by one: a huge resolution would take forever.
    base_resolution: Annotated[
        list[Annotated[int, Field(ge=64, le=2**16), ui(unit="pixels")]], Field(min_length=1)
    ] = [512]
    """Base resolutions of the buckets."""
    batch_size: Annotated[int, Field(ge=1)] = 1
    """Rows per batch."""
    tokenizer_path: str | None = None
    """T5's tokenizer; null: tokens are not counted."""
    max_tokens: Annotated[int, Field(ge=1), ui(unit="tokens")] = 512
    """Length at which training truncates captions."""
    # Unrelated images differ in half of the bits; above that, everything matches.
    near_bits: Annotated[int, Field(ge=-1, le=64)] = 8
    """Near duplicates may differ in this many of 128 bits; -1 skips the search."""
    with_pictures: bool = True
    """Off: check only names and captions."""
    with_urls: bool = False
    """Also fetch images from URLs."""


def _find_problems(config: LintConfig) -> list[Problem]:
    return source_problems(config.source_path, config.form)


def _lint(config: LintConfig, progress: Progress) -> None:
    """The result is the report, with the first findings of each kind."""
    jsonl, images, unusable = _rows_of(config, progress)
    progress.phase("looking")
    progress.save_result(_report(config, jsonl, images, progress, unusable) | unusable_summary(unusable))


def _rows_of(config: LintConfig, progress: Progress) -> tuple[Path, str, list[Unusable]]:
    """The JSONL to check, the folder of its file names, and items of a source folder without a row."""
    from flowloom.datasets.build.build import build
    from flowloom.datasets.build.rows import image_folder

    source = Path(config.source_path)
    if not source.is_dir():
        return source, config.images_dir or str(image_folder(source, None)), []
    progress.phase("reading")
    jsonl = progress.run_dir.path / "rows.jsonl"
    # With a default caption an image without one gets a row, and is checked like the others.
    options = BuildOptions(kind=config.form, default_caption="")
    built = build(str(source), jsonl, options, build_progress(progress))
    return jsonl, str(built.root or source), built.unusable


def _report(
    config: LintConfig, jsonl: Path, images: str, progress: Progress, unusable: list[Unusable]
) -> dict[str, Any]:
    from flowloom.datasets.lint.check import LintOptions, lint

    def on_progress(done: int) -> None:
        progress.step(done)
        progress.raise_if_stopped()

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
    report.add_unreadable([(item.place, item.reason) for item in unusable])
    listed = [finding for kind in report.counts for finding in report.of(kind)[:MAX_LISTED]]
    findings = {"findings": [vars(finding) for finding in listed], "num_findings": len(report.findings)}
    return report.as_json() | findings


LINT = FunctionTask(
    name="dataset-lint",
    title="Lint a dataset",
    config_type=LintConfig,
    needs_device=False,
    find_problems=_find_problems,
    body=_lint,
)
