"""Datasets that come from an address or from the Hugging Face hub."""

from __future__ import annotations

from fastapi import status
from pydantic import BaseModel, ConfigDict, Field

from flowloom.server.datasets.locations import DatasetTaken, InvalidName
from flowloom.server.deps import StudioDep
from flowloom.server.off_loop import Router
from flowloom.server.problems import Invalid, problems
from flowloom.server.runs.create import NewRun, make_run, problems_of
from flowloom.server.runs.references import runs_referencing
from flowloom.server.runs.view import ACTIVE, RunView
from flowloom.tasks.dataset_import import IMPORT

router = Router(tags=["datasets"], responses=problems())


class ImportRequest(BaseModel):
    """Where a dataset comes from."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(max_length=200, description="Of the new dataset.", examples=["fox"])
    url: str = Field(
        "",
        max_length=4096,
        description="Of a zip, a tar or a table.",
        examples=["https://example.org/fox.zip"],
    )
    repo: str = Field("", max_length=200, description="Or a dataset of the hub, OWNER/NAME.", examples=[""])
    revision: str = Field("main", max_length=200, description="Branch, tag or commit of the repository.")
    below: str = Field("", max_length=4096, description="Only what lies below this folder of it.")
    sha256: str = Field("", max_length=64, description="What the file at `url` must be.")
    encoding: str = Field("", max_length=40, description="Of names in an archive that does not say.")


@router.post(
    "/datasets/import",
    summary="Bring a dataset from an address or the hub",
    status_code=status.HTTP_201_CREATED,
    responses=problems(DatasetTaken, InvalidName),
)
def import_dataset(body: ImportRequest, studio: StudioDep) -> RunView:
    """Queues a run that downloads and unpacks it, and goes on where it was stopped or killed. The dataset
    appears whole or not at all; of a table, parquet or metadata.jsonl, NAME.jsonl is built as well."""
    locations = studio.datasets.locations
    name = locations.free_name(body.name)
    if name.lower().endswith(".jsonl"):
        raise InvalidName(f"{name!r} is the name of a JSONL.", "Call the folder otherwise.")
    locations.free_name(f"{name}.jsonl")
    target = locations.home / name
    if coming := runs_referencing(studio, target, ACTIVE):
        raise DatasetTaken(f"{coming[0]} brings or needs {name!r}.", "Choose another name, or cancel it.")
    config = body.model_dump(exclude={"name"}) | {"target_dir": str(target)}
    if found := problems_of(studio, IMPORT, config):
        raise Invalid.of(found, "")
    return make_run(studio, IMPORT, NewRun(name=None, config=config, devices=[], first=False))
