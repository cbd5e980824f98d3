"""Datasets: folders, JSONL files and buckets; deleted ones are in the trash."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from fastapi import Depends, status
from fastapi import Path as InPath
from pydantic import BaseModel, ConfigDict, Field

from flowloom.server.datasets.edit_lock import EditUnderWay
from flowloom.server.datasets.locations import (
    Dataset,
    DatasetLocations,
    DatasetTaken,
    InvalidName,
    Kind,
    NoSuchDataset,
    Trashed,
)
from flowloom.server.datasets.registry import DatasetRegistry
from flowloom.server.deps import StudioDep
from flowloom.server.off_loop import Router, in_group
from flowloom.server.problems import FieldProblem, InUse, Invalid, NoSuchFile, OutsideRoots, problems
from flowloom.server.runs.references import require_unreferenced
from flowloom.storage.base import StorageSection

router = Router(tags=["datasets"], responses=problems())


class DatasetView(BaseModel):
    """A dataset."""

    name: str = Field(examples=["fox"])
    kind: Kind
    path: str | None = Field(description="The folder or JSONL; null for a bucket.")
    url: str | None = Field(description="URL of a bucket.", examples=["s3://bucket/fox"])
    storage: StorageSection = Field(description="Access to the bucket, without keys.")
    images_dir: str | None = Field(description="Folder that image names are relative to.")
    is_link: bool = Field(description="Stored elsewhere: deleting it removes only the link.")
    source: str | None = Field(
        description="The folder that a JSONL was built from; null: none, or not recorded.", examples=[None]
    )

    @classmethod
    def of(cls, dataset: Dataset, locations: DatasetLocations) -> DatasetView:
        """The view of a dataset."""
        recipe = locations.recipe_of(dataset)
        return cls(
            name=dataset.name,
            kind=dataset.kind,
            path=str(dataset.path) if dataset.path else None,
            url=dataset.url or None,
            storage=StorageSection.model_validate(dataset.storage),
            images_dir=str(dataset.images_dir) if dataset.images_dir else None,
            is_link=dataset.is_link,
            source=recipe.source if recipe else None,
        )


class NewDataset(BaseModel):
    """A dataset to create, or one stored elsewhere to register."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(max_length=200, examples=["fox"])
    path: str | None = Field(
        None,
        max_length=4096,
        description="A folder or JSONL in one of the studio's roots; null: create a folder.",
        examples=[None],
    )
    url: str | None = Field(None, max_length=2048, description="s3://, gs:// or az://BUCKET/FOLDER.")
    storage: StorageSection = Field(
        default_factory=StorageSection, description="Access to the bucket: endpoint, region ..."
    )


class TrashView(BaseModel):
    """A dataset that was deleted."""

    id: str = Field(examples=["20260102-030405-0a1b2c3d"])
    name: str
    time: float = Field(description="Seconds since 1970.")

    @classmethod
    def of(cls, trashed: Trashed) -> TrashView:
        """The view of a dataset."""
        return cls.model_validate(trashed, from_attributes=True)


async def _library(studio: StudioDep) -> DatasetRegistry:
    return studio.datasets


LibraryDep = Annotated[DatasetRegistry, Depends(_library)]


def _dataset(
    library: LibraryDep, dataset: Annotated[str, InPath(description="Its name.", examples=["fox"])]
) -> Dataset:
    return library.get(dataset)


DatasetDep = Annotated[Dataset, Depends(_dataset)]
TrashId = Annotated[
    str, InPath(description="As listed by GET /api/trash.", examples=["20260102-030405-0a1b2c3d"])
]


@router.get("/datasets", summary="List datasets")
def list_datasets(library: LibraryDep) -> list[DatasetView]:
    """Every folder and JSONL in the root `data`, and the datasets registered from elsewhere."""
    return [DatasetView.of(found, library.locations) for found in library.locations.all()]


@router.post(
    "/datasets",
    summary="Create or register a dataset",
    status_code=status.HTTP_201_CREATED,
    responses=problems(DatasetTaken, InvalidName, OutsideRoots, NoSuchFile),
)
def create_dataset(library: LibraryDep, body: NewDataset) -> DatasetView:
    """A new folder to upload to or, with `path` or `url`, a name for an existing dataset."""
    if body.path is not None and body.url is not None:
        raise Invalid(
            "1 problem.", "Give only one of them.", [FieldProblem(where="/url", detail="path is given too.")]
        )
    where = Path(body.path) if body.path is not None else body.url
    if where is None:
        return DatasetView.of(library.locations.create(body.name), library.locations)
    storage = body.storage.model_dump(mode="json", exclude_defaults=True)
    made = library.locations.link(body.name, where, storage if body.url else {})
    return DatasetView.of(made, library.locations)


@router.get("/datasets/{dataset}", summary="A dataset", responses=problems(NoSuchDataset))
def read_dataset(library: LibraryDep, dataset: DatasetDep) -> DatasetView:
    """Its location. GET .../images lists its images."""
    return DatasetView.of(dataset, library.locations)


@router.delete(
    "/datasets/{dataset}",
    summary="Delete a dataset",
    responses=problems(NoSuchDataset, InUse, EditUnderWay),
)
@in_group("waiting")
def delete_dataset(library: LibraryDep, dataset: DatasetDep, studio: StudioDep) -> TrashView:
    """Move it to the trash; of one stored elsewhere, only the link. Refused if a queued or running run
    needs it."""
    if dataset.path and not dataset.is_link:
        require_unreferenced(studio, dataset.path)
    with library.edit_lock(dataset).take(f"{dataset.name} is being deleted"):
        return TrashView.of(library.locations.delete(dataset.name))


@router.get("/trash", summary="List deleted datasets")
def list_trash(library: LibraryDep) -> list[TrashView]:
    """Newest first."""
    return [TrashView.of(found) for found in library.locations.trash()]


@router.post(
    "/trash/{trash_id}/restore", summary="Restore a dataset", responses=problems(NoSuchDataset, DatasetTaken)
)
def restore_dataset(library: LibraryDep, trash_id: TrashId) -> DatasetView:
    """Under its old name."""
    return DatasetView.of(library.locations.restore(trash_id), library.locations)


@router.delete(
    "/trash/{trash_id}",
    summary="Delete permanently",
    status_code=status.HTTP_204_NO_CONTENT,
    responses=problems(NoSuchDataset),
)
@in_group("waiting")
def destroy_dataset(library: LibraryDep, trash_id: TrashId) -> None:
    """With all its images. This cannot be undone."""
    library.locations.destroy(trash_id)
