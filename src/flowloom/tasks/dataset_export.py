"""Export a JSONL to the format of another trainer."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, Field

from flowloom.errors import DataError, Problem
from flowloom.schema import Section, ui
from flowloom.tasks.base import FunctionTask, Progress
from flowloom.tasks.dataset_build import MAX_LISTED, UnusableItem, listed

if TYPE_CHECKING:
    from flowloom.datasets.build.export import ExportReport


class ExportConfig(Section):
    """Options of `flowloom dataset export`."""

    jsonl_path: str
    """FLOW's JSONL."""
    out_path: str
    """The folder or file to write; it must not exist yet."""
    to: Literal["kohya", "kohya-toml", "webdataset", "parquet"] = "kohya"
    """kohya: folders named REPEATS_NAME; kohya-toml: one file, without copying images."""
    images_dir: str | None = None
    """Folder that file names are relative to; null: as recorded when the JSONL was built."""
    link: Literal["copy", "hard", "soft"] = "copy"
    """Copy images into Kohya's folders, or link them."""
    name: str = ""
    """Name of Kohya's folder or of the shards. Empty: that of the JSONL."""
    shard_mib: Annotated[int, Field(ge=1), ui(unit="MiB")] = 1024
    """Maximum size of a webdataset shard."""
    with_images: bool = True
    """Parquet: include the images; off: only their names."""


class ExportResult(BaseModel):
    """The result of an export."""

    output: str = Field(description="The new folder or file.")
    num_rows: int
    remarks: dict[str, int] = Field(description="Number of rows for each remark.")
    num_unusable: int
    unusable: list[UnusableItem] = Field(description=f"At most {MAX_LISTED} of them.")


def _find_problems(config: ExportConfig) -> list[Problem]:
    problems: list[Problem] = []
    if not Path(config.jsonl_path).is_file():
        problems.append(Problem("jsonl_path", f"{config.jsonl_path} does not exist.", "not-found"))
    if Path(config.out_path).exists():
        problems.append(Problem("out_path", f"{config.out_path} exists already: choose another name."))
    return problems


def _export(config: ExportConfig, progress: Progress) -> None:
    """Resumed, it starts over."""
    from flowloom.datasets.build.export import ExportOptions, export

    out, marker = Path(config.out_path), progress.run_dir.path / "writing"
    if out.is_dir() and any(out.iterdir()):
        if not marker.exists():
            raise DataError(
                f"{out} is no longer an empty folder, and is not overwritten. Choose another one."
            )
        shutil.rmtree(out)  # left by an earlier attempt of this run
    marker.touch()

    def on_progress(report: ExportReport) -> None:
        progress.step(report.num_rows)
        progress.raise_if_stopped()

    options = ExportOptions(
        images_dir=Path(config.images_dir) if config.images_dir else None,
        link=config.link,
        name=config.name,
        shard_mib=config.shard_mib,
        with_images=config.with_images,
    )
    progress.phase("writing")
    report = export(Path(config.jsonl_path), config.to, out, options, on_progress)
    result = ExportResult(
        output=str(report.output),
        num_rows=report.num_rows,
        remarks=dict(report.remarks),
        num_unusable=len(report.unusable),
        unusable=listed(report.unusable),
    )
    progress.save_result(result.model_dump())


EXPORT = FunctionTask(
    name="dataset-export",
    title="Export a dataset",
    config_type=ExportConfig,
    needs_device=False,
    find_problems=_find_problems,
    body=_export,
)
