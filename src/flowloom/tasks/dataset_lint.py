"""Lint a dataset: damaged and missing files, captions, duplicates, buckets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, Field

from flowloom.config.run import RunConfig
from flowloom.datasets.build.options import BuildOptions, Kind
from flowloom.errors import Problem
from flowloom.schema import Section, ui
from flowloom.tasks.base import FunctionTask, Progress
from flowloom.tasks.dataset_build import (
    MAX_LISTED,
    UnusableItem,
    build_progress,
    listed,
    source_problems,
)

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
    with_images: bool = True
    """Off: check only names and captions."""
    with_urls: bool = False
    """Also fetch images from URLs."""


class FindingView(BaseModel):
    """One finding about one row."""

    kind: str = Field(examples=["empty_caption"])
    line: int = Field(description="Line in the JSONL; 0: the file has no row.")
    filename: str
    message: str
    group: int | None = Field(description="Copies of one image have the same number.")
    amount: float | None = Field(description="Factor of upscaling, or number of tokens.")


class BucketCounts(BaseModel):
    """A bucket and its rows."""

    width: int
    height: int
    rows: int
    batches: int = Field(description="Complete ones.")
    remainder: int = Field(description="Rows of the last, short batch.")


class Distribution(BaseModel):
    """The distribution of a number over the rows."""

    minimum: int
    median: int
    p95: int = Field(description="95th percentile.")
    maximum: int
    bars: list[tuple[int, int]] = Field(description="Lower edge and rows of each bar; the last is open.")


class CaptionCounts(BaseModel):
    """Statistics of the captions."""

    num_rows: int
    num_tag_based: int
    num_empty: int
    num_distinct: int
    characters: Distribution | None
    tokens: Distribution | None = Field(description="Null: no tokenizer was given.")
    tags_per_row: Distribution | None
    num_distinct_tags: int
    num_tags_used_once: int
    top_tags: list[tuple[str, int]]


class LintResult(BaseModel):
    """The report, with the first findings of each kind."""

    model_config = ConfigDict(extra="forbid")

    errors: int
    warnings: int
    notes: int
    counts: dict[str, int] = Field(description="Findings by kind.", examples=[{"empty_caption": 3}])
    path: str = Field(description="The JSONL.")
    images: str = Field(description="Folder that file names are relative to.")
    num_rows: int
    num_usable: int = Field(description="Rows that training reads.")
    num_decoded: int = Field(description="Images that were opened.")
    num_not_checked: int = Field(description="Images at URLs that were not downloaded.")
    batch_size: int
    resolutions: list[int]
    max_tokens: int
    seconds: float
    findings: list[FindingView] = Field(description=f"At most {MAX_LISTED} of each kind.")
    buckets: list[BucketCounts]
    captions: CaptionCounts
    num_crowded: int = Field(description="Images whose near duplicates may be incomplete.")
    crowded_message: str
    num_findings: int
    num_unusable: int
    unusable: list[UnusableItem] = Field(description=f"At most {MAX_LISTED} of them.")


def _find_problems(config: LintConfig) -> list[Problem]:
    return source_problems(config.source_path, config.form)


def _lint(config: LintConfig, progress: Progress) -> None:
    jsonl, images, unusable = _rows_of(config, progress)
    progress.phase("checking")
    progress.save_result(_report(config, jsonl, images, progress, unusable).model_dump())


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
) -> LintResult:
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
        with_images=config.with_images,
        with_urls=config.with_urls,
        near_bits=config.near_bits,
        progress=on_progress,
    )
    report = lint(options).report
    report.add_unreadable([(item.where, item.reason) for item in unusable])
    shown = [finding for kind in report.counts for finding in report.of(kind)[:MAX_LISTED]]
    lists = {
        "findings": [vars(finding) for finding in shown],
        "num_findings": len(report.findings),
        "num_unusable": len(unusable),
        "unusable": listed(unusable),
    }
    return LintResult.model_validate(report.as_json() | lists)


LINT = FunctionTask(
    name="dataset-lint",
    title="Lint a dataset",
    config_type=LintConfig,
    needs_device=False,
    find_problems=_find_problems,
    body=_lint,
)
