"""Import of datasets from a URL or the Hugging Face hub."""

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
    """The source of a dataset."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(max_length=200, description="Name of the new dataset.", examples=["fox"])
    url: str = Field(
        "",
        max_length=4096,
        description="URL of a zip, tar or table.",
        examples=["https://example.org/fox.zip"],
    )
    repo: str = Field("", max_length=200, description="Or a dataset on the hub, OWNER/NAME.", examples=[""])
    revision: str = Field("main", max_length=200, description="Branch, tag or commit of the repository.")
    below: str = Field("", max_length=4096, description="Only files in this folder of the repository.")
    sha256: str = Field("", max_length=64, description="Expected checksum of the file at `url`.")
    encoding: str = Field(
        "", max_length=40, description="Encoding of names in an archive that does not state it."
    )


@router.post(
    "/datasets/import",
    summary="Import a dataset from a URL or the hub",
    status_code=status.HTTP_201_CREATED,
    responses=problems(DatasetTaken, InvalidName),
)
def import_dataset(body: ImportRequest, studio: StudioDep) -> RunView:
    """Queue a run that downloads and unpacks it, and that can be stopped, killed and resumed. The dataset
    appears when it is complete; for a table, such as metadata.jsonl, NAME.jsonl is built too."""
    locations = studio.datasets.locations
    name = locations.free_name(body.name)
    if name.lower().endswith(".jsonl"):
        raise InvalidName(f"{name!r} is the name of a JSONL.", "Choose another name for the folder.")
    locations.free_name(f"{name}.jsonl")
    target = locations.home / name
    if coming := runs_referencing(studio, target, ACTIVE):
        raise DatasetTaken(
            f"The run {coming[0]} imports or needs {name!r}.", "Choose another name, or cancel that run."
        )
    config = body.model_dump(exclude={"name"}) | {"target_dir": str(target)}
    if found := problems_of(studio, IMPORT, config):
        raise Invalid.of(found, "")
    return make_run(studio, IMPORT, NewRun(name=None, config=config, devices=[], first=False))
