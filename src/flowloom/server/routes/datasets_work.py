"""Lint, conversion and export of datasets; small ones are done at once, large ones by a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, TypeVar

from fastapi import Response
from pydantic import BaseModel, ConfigDict, Field

from flowloom.datasets.build.options import Kind
from flowloom.run.task import Task
from flowloom.server.datasets.locations import Dataset, DatasetTaken, InvalidName, NoSuchDataset, WrongKind
from flowloom.server.datasets.subprocess_task import Failed, TakesLong, result_of
from flowloom.server.deps import Studio, StudioDep
from flowloom.server.off_loop import Router, in_group
from flowloom.server.problems import Invalid, problems
from flowloom.server.routes.datasets import DatasetDep, LibraryDep
from flowloom.server.runs.create import NewRun, make_run
from flowloom.server.runs.view import RunView
from flowloom.tasks.dataset_build import BUILD, UPDATE, BuildResult
from flowloom.tasks.dataset_export import EXPORT, ExportResult
from flowloom.tasks.dataset_lint import LINT, LintResult

router = Router(tags=["datasets"], responses=problems(TakesLong, Failed))
DIRECT = 300
"""Maximum number of images of a dataset that is processed at once."""


class DatasetTaskRequest(BaseModel):
    """Options of a task on a dataset."""

    model_config = ConfigDict(extra="forbid")

    as_run: bool | None = Field(
        None, description=f"Queue a run; null: only for more than {DIRECT} images.", examples=[None]
    )


class LintRequest(DatasetTaskRequest):
    """Options of a lint."""

    base_resolution: list[int] = Field([512], min_length=1, max_length=16, examples=[[512, 1024]])
    batch_size: int = Field(1, ge=1, le=10**6)
    tokenizer_path: str | None = Field(
        None, max_length=4096, description="Folder of T5's tokenizer, to count tokens."
    )
    max_tokens: int = Field(512, ge=1, le=10**6)
    form: Kind = Field("auto", description="Format of a folder; auto: detected, or 422 if unclear.")
    near_bits: int = Field(
        8, ge=-1, le=64, description="Bits in which near duplicates may differ; -1: skip the search."
    )
    with_images: bool = True


class ConvertRequest(DatasetTaskRequest):
    """Options of a conversion to FLOW's JSONL."""

    name: str = Field(
        "", max_length=200, description="Name of the new dataset; empty: NAME.jsonl.", examples=[""]
    )
    replace: bool = Field(False, description="Replace an existing JSONL of this name.")
    form: Kind = Field("auto", description="Format of a folder; auto: detected, or 422 if unclear.")
    captions: Literal["auto", "tags", "prose"] = "auto"
    default_caption: str | None = Field(None, max_length=10_000, description="Caption of images without one.")
    each_line: bool = False
    loss_weight: float = Field(1.0, ge=0, le=1)
    with_repeats: bool = True


class ExportRequest(DatasetTaskRequest):
    """Options of an export."""

    name: str = Field(max_length=200, description="Name of the new folder or file.", examples=["fox-kohya"])
    to: Literal["kohya", "kohya-toml", "webdataset", "parquet"] = "kohya"
    link: Literal["copy", "hard", "soft"] = "copy"
    concept: str = Field(
        "", max_length=100, pattern=r"^[^/\\\x00]*$", description="Name in Kohya's folder names."
    )


class FreshnessView(BaseModel):
    """How a JSONL compares with the folder that it was built from."""

    source: str | None = Field(description="The folder; null: none, or not recorded.", examples=[None])
    is_outdated: bool = Field(description="Its images or captions changed since the JSONL was built.")
    num_changed: int = Field(description="Number of rows that differ.", examples=[12])
    is_edited: bool = Field(description="The JSONL itself was changed; an update discards these changes.")


class _Answer(BaseModel):
    run: RunView | None = Field(description="The queued run of a large dataset.")


class LintAnswer(_Answer):
    """The report on a small dataset, or the run that will have it as its result."""

    result: LintResult | None


class BuildAnswer(_Answer):
    """The result of building a JSONL, or the run that will have it."""

    result: BuildResult | None


class ExportAnswer(_Answer):
    """The result of an export, or the run that will have it."""

    result: ExportResult | None


Answer = TypeVar("Answer", bound=_Answer)


def _either(answer: type[_Answer]) -> dict[int | str, dict[str, Any]]:
    return {202: {"model": answer, "description": "The dataset is large: a run was queued."}}


@router.post(
    "/datasets/{dataset}/lint",
    summary="Lint a dataset",
    responses=problems(NoSuchDataset, WrongKind, TakesLong) | _either(LintAnswer),
)
@in_group("waiting")
def lint_dataset(dataset: DatasetDep, body: LintRequest, studio: StudioDep, response: Response) -> LintAnswer:
    """Damaged and missing files, wrong sizes, captions, duplicates, buckets. Each finding names its row."""
    if dataset.path is None:
        raise WrongKind(f"{dataset.name!r} is a bucket.", "Convert it to a JSONL, then lint the JSONL.")
    config = body.model_dump(exclude={"as_run"}) | {"source_path": str(dataset.path)}
    return _answer(LintAnswer, studio, LINT, config, response if _is_large(studio, dataset, body) else None)


@router.post(
    "/datasets/{dataset}/convert",
    summary="Convert to FLOW's JSONL",
    responses=problems(NoSuchDataset, WrongKind, DatasetTaken, InvalidName) | _either(BuildAnswer),
)
@in_group("waiting")
def convert_dataset(
    dataset: DatasetDep, body: ConvertRequest, studio: StudioDep, response: Response
) -> BuildAnswer:
    """Of a folder or bucket. The JSONL is a separate dataset; the images stay in place."""
    if dataset.kind == "jsonl":
        raise WrongKind(f"{dataset.name!r} is a JSONL already.", "Export it to another format.")
    out = _out(studio, body.name or f"{dataset.name}.jsonl", ".jsonl", replace=body.replace)
    config = body.model_dump(exclude={"as_run", "name", "replace"})
    config |= {
        "source_path": dataset.url or str(dataset.path),
        "out_path": str(out),
        "storage": dataset.storage,
    }
    return _answer(BuildAnswer, studio, BUILD, config, response if _is_large(studio, dataset, body) else None)


@router.get(
    "/datasets/{dataset}/freshness",
    summary="Compare a JSONL with its folder",
    responses=problems(NoSuchDataset),
)
def read_freshness(dataset: DatasetDep, library: LibraryDep) -> FreshnessView:
    """Report changes of the images and captions in the folder that it was built from."""
    found = library.freshness(dataset)
    if found is None:
        return FreshnessView(source=None, is_outdated=False, num_changed=0, is_edited=False)
    return FreshnessView(
        source=str(found.source),
        is_outdated=found.is_outdated,
        num_changed=found.num_changed,
        is_edited=found.is_edited,
    )


@router.post(
    "/datasets/{dataset}/update",
    summary="Build a JSONL again",
    responses=problems(NoSuchDataset, WrongKind) | _either(BuildAnswer),
)
def update_dataset(
    dataset: DatasetDep, body: DatasetTaskRequest, library: LibraryDep, studio: StudioDep, response: Response
) -> BuildAnswer:
    """From its folder, with the options of its build. It is replaced when the new one is complete."""
    recipe = library.locations.recipe_of(dataset)
    if recipe is None:
        raise WrongKind(f"{dataset.name!r} has no record of its source folder.", "Convert the folder again.")
    config = {
        "jsonl_path": str(dataset.path),
        "source_path": recipe.source,
        "images_dir": str(recipe.options.root or recipe.source),
    }
    return _answer(
        BuildAnswer, studio, UPDATE, config, response if _is_large(studio, dataset, body) else None
    )


@router.post(
    "/datasets/{dataset}/export",
    summary="Export to Kohya, webdataset or parquet",
    responses=problems(NoSuchDataset, WrongKind, DatasetTaken, InvalidName) | _either(ExportAnswer),
)
@in_group("waiting")
def export_dataset(
    dataset: DatasetDep, body: ExportRequest, studio: StudioDep, response: Response
) -> ExportAnswer:
    """Of a JSONL; convert a folder first. Kohya's folders become a new dataset."""
    if dataset.kind != "jsonl":
        raise WrongKind(
            f"{dataset.name!r} is a {dataset.kind}.", "Convert it to a JSONL, then export the JSONL."
        )
    ends = {"kohya-toml": ".toml", "parquet": ".parquet"}
    out = _out(studio, body.name, ends.get(body.to, ""), replace=False)
    config = {"jsonl_path": str(dataset.path), "out_path": str(out), "to": body.to, "link": body.link}
    return _answer(
        ExportAnswer,
        studio,
        EXPORT,
        config | {"name": body.concept},
        response if _is_large(studio, dataset, body) else None,
    )


def _answer(
    answer: type[Answer], studio: Studio, task: Task, config: dict[str, Any], run_response: Response | None
) -> Answer:
    """Run the task at once, or queue a run if there is a `run_response`."""
    if strays := list(studio.roots.path_problems(config)):
        raise Invalid.of(strays, "")
    if run_response is None:
        result = result_of(task, config, studio.settings.state_dir)
        return answer.model_validate({"result": result, "run": None})
    run_response.status_code = 202
    new = NewRun(name=None, config=config, devices=[], first=False)
    return answer.model_validate({"result": None, "run": make_run(studio, task, new)})


def _is_large(studio: Studio, dataset: Dataset, body: DatasetTaskRequest) -> bool:
    if body.as_run is not None:
        return body.as_run
    if dataset.kind == "bucket":
        return True
    index = studio.datasets.index(dataset)
    index.refresh()
    return index.totals()["images"] > DIRECT


def _out(studio: Studio, name: str, suffix: str, *, replace: bool) -> Path:
    """The path of a new dataset called `name`.

    Raises:
        InvalidName: the name cannot be used.
        DatasetTaken: a dataset has this name.
    """
    locations = studio.datasets.locations
    if suffix and not name.lower().endswith(suffix):
        name += suffix
    if replace and (locations.home / name).is_file():
        return locations.get(name).path or locations.home / name
    locations.home.mkdir(parents=True, exist_ok=True)
    return locations.home / locations.free_name(name)
