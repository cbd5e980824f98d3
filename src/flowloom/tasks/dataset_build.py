"""Build a JSONL from a dataset of another form, or update one from its folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, Field

from flowloom.datasets.build.detect import AmbiguousSource, detect
from flowloom.datasets.build.options import BuildOptions, Kind
from flowloom.datasets.build.update import recipe_of
from flowloom.errors import DataError, Problem
from flowloom.schema import Section
from flowloom.storage.base import StorageSection, scheme_of
from flowloom.tasks.base import FunctionTask, Progress

if TYPE_CHECKING:
    from flowloom.datasets.build.build import BuildReport
    from flowloom.datasets.build.items import Unusable

MAX_LISTED = 200
"""Unusable items, and findings of each kind, that a result lists."""
_VARIABLES = {"endpoint": "AWS_ENDPOINT_URL", "region": "AWS_REGION", "profile": "AWS_PROFILE"}


class BuildConfig(Section):
    """Options of `flowloom dataset build`."""

    source_path: str
    """A folder, Kohya's folders or TOML, a table, tars, a saved Hugging Face dataset, or s3://BUCKET/FOLDER."""
    out_path: str
    """The JSONL to write; an existing one is replaced at the end."""
    form: Kind = "auto"
    """Format of the source; auto: detected. kohya: numbers in folder names are repeats."""
    captions: Literal["auto", "tags", "prose"] = "auto"
    """Kind of captions; auto: detected for each caption."""
    default_caption: str | None = None
    """Caption of images without one; null: these images are left out and reported."""
    each_line: bool = False
    """Treat each line of a text file as a separate caption; they alternate over the epochs."""
    caption_encoding: str = "utf-8"
    """Encoding of text files without a byte order mark."""
    # The range of a row's weight (data/row_checks.py).
    loss_weight: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Loss weight of images that have none recorded."""
    with_repeats: bool = True
    """Write a row for each of Kohya's repeats."""
    with_videos: bool = True
    """Read videos, too; off: images only."""
    with_scenes: bool = False
    """Cut videos into clips at scene changes."""
    clip_seconds: Annotated[float, Field(ge=1)] | None = None
    """Cut videos, or their scenes, every so many seconds; null: not."""
    storage: StorageSection = Field(default_factory=StorageSection, description="Access to buckets.")


class UpdateConfig(Section):
    """Options of `flowloom dataset update`."""

    jsonl_path: str
    """A JSONL that was built from a folder."""
    source_path: str
    """The folder that it was built from, as recorded."""
    images_dir: str
    """The folder that its file names are relative to, as recorded."""


class UnusableItem(BaseModel):
    """An item of a source that did not become a row."""

    where: str
    reason: str


class BuildResult(BaseModel):
    """The result of a build or an update."""

    output: str = Field(description="The JSONL.")
    images_dir: str | None = Field(description="Folder that file names are relative to.")
    form: str = Field(description="Detected or given format of the source.", examples=["folder"])
    why: str = Field(description="Reason for the detected format.")
    num_images: int
    num_rows: int
    num_tag_based: int
    remarks: dict[str, int] = Field(description="Number of rows for each remark.")
    num_unusable: int
    unusable: list[UnusableItem] = Field(description=f"At most {MAX_LISTED} of them.")


def source_problems(source_path: str, form: Kind) -> list[Problem]:
    """A source that does not exist, or a folder whose format cannot be detected."""
    if scheme_of(source_path):
        return []
    if not Path(source_path).exists():
        return [Problem("source_path", f"{source_path} does not exist.", "not-found")]
    if form != "auto" or not Path(source_path).is_dir():
        return []
    try:
        detect(source_path, BuildOptions()).checked()
    except AmbiguousSource as error:
        return [Problem("form", str(error))]
    except DataError as error:
        return [Problem("source_path", str(error))]
    return []


def _build_problems(config: BuildConfig) -> list[Problem]:
    problems = source_problems(config.source_path, config.form)
    if scheme_of(config.source_path) not in ("", "s3", "gs", "az"):
        problems.append(Problem("source_path", "must be a path, or s3://, gs:// or az://BUCKET/FOLDER."))
    if not config.out_path.lower().endswith(".jsonl"):
        problems.append(Problem("out_path", "must end in .jsonl."))
    return problems


def _update_problems(config: UpdateConfig) -> list[Problem]:
    recipe = recipe_of(Path(config.jsonl_path))
    if recipe is None:
        return [Problem("jsonl_path", f"{config.jsonl_path} was not built from a folder on this machine.")]
    recorded = recipe.source, str(recipe.options.root or recipe.source)
    if recorded != (config.source_path, config.images_dir):
        return [Problem("source_path", f"{config.jsonl_path} was built from {recipe.source}.")]
    return []


def _build(config: BuildConfig, progress: Progress) -> None:
    """The result counts rows and lists unusable items."""
    storage = config.storage.model_dump()
    os.environ.update({name: storage[key] for key, name in _VARIABLES.items() if storage[key]})
    tags = {"auto": None, "tags": True, "prose": False}[config.captions]
    options = BuildOptions(
        kind=config.form,
        is_tag_based=tags,
        default_caption=config.default_caption,
        each_line=config.each_line,
        caption_encoding=config.caption_encoding,
        loss_weight=config.loss_weight,
        with_repeats=config.with_repeats,
        with_videos=config.with_videos,
        with_scenes=config.with_scenes,
        clip_s=config.clip_seconds,
    )
    progress.phase("reading")
    result = build_jsonl(config.source_path, Path(config.out_path), options, progress)
    progress.save_result(result.model_dump())


def _update(config: UpdateConfig, progress: Progress) -> None:
    """The result is that of a build."""
    from flowloom.datasets.build.update import update

    progress.phase("reading")
    progress.save_result(_result(update(Path(config.jsonl_path), build_progress(progress))).model_dump())


def build_jsonl(source: str, out: Path, options: BuildOptions, progress: Progress) -> BuildResult:
    """Build a JSONL and report progress.

    Raises:
        StopRequested: the run was asked to stop.
        DataError: see `build`.
    """
    from flowloom.datasets.build.build import build

    return _result(build(source, out, options, build_progress(progress)))


def build_progress(progress: Progress) -> Callable[[BuildReport], None]:
    """A callback of builds that reports progress and ends them on a stop request."""

    def on_progress(report: BuildReport) -> None:
        progress.step(report.num_images)
        progress.raise_if_stopped()

    return on_progress


def _result(report: BuildReport) -> BuildResult:
    return BuildResult(
        output=str(report.output),
        images_dir=str(report.root) if report.root else None,
        form=report.kind,
        why=report.why,
        num_images=report.num_images,
        num_rows=report.num_rows,
        num_tag_based=report.num_tag_based,
        remarks=dict(report.remarks),
        num_unusable=len(report.unusable),
        unusable=listed(report.unusable),
    )


def listed(unusable: list[Unusable]) -> list[UnusableItem]:
    """The first unusable items."""
    return [UnusableItem(where=item.where, reason=item.reason) for item in unusable[:MAX_LISTED]]


BUILD = FunctionTask(
    name="dataset-build",
    title="Build a JSONL",
    config_type=BuildConfig,
    needs_device=False,
    find_problems=_build_problems,
    body=_build,
)
UPDATE = FunctionTask(
    name="dataset-update",
    title="Update a JSONL",
    config_type=UpdateConfig,
    needs_device=False,
    find_problems=_update_problems,
    body=_update,
)
