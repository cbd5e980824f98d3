"""The files of a repository on the Hugging Face hub, to choose downloads from."""

from __future__ import annotations

import os
from typing import Annotated

from fastapi import Path, Query
from pydantic import BaseModel, Field

from flowloom.config.secrets import read_secrets
from flowloom.errors import Denied, NotFound, SourceError
from flowloom.server.off_loop import Router, in_group
from flowloom.server.problems import ServiceError, problems
from flowloom.storage.downloads.hub import files_of
from flowloom.storage.downloads.request import HUB, DownloadClient
from flowloom.storage.ssrf import Allowed


class NoSuchRepository(ServiceError):
    status, code, title = 404, "no-such-repository", "The hub has no such repository."


class HubDenied(ServiceError):
    status, code, title = 403, "hub-denied", "The hub denies access to this repository."


class HubUnreachable(ServiceError):
    status, code, title = 502, "hub-unreachable", "The hub could not be reached."


router = Router(tags=["models"], responses=problems(NoSuchRepository, HubDenied, HubUnreachable))
Part = Annotated[str, Path(pattern=r"^[\w.-]+$", max_length=100)]


class HubFileView(BaseModel):
    """One file of a repository."""

    name: str = Field(examples=["Chroma1-HD.safetensors"])
    size: int = Field(description="In bytes.")
    sha256: str | None = Field(description="For large files.")


class Repository(BaseModel):
    """A repository and its files."""

    repo: str = Field(examples=["lodestones/Chroma1-HD"])
    revision: str
    url: str = Field(description="Its page, where its license is.")
    files: list[HubFileView]


@router.get("/hub/{owner}/{name}", summary="List a repository of the hub")
@in_group("waiting")
def list_repository(
    owner: Part,
    name: Part,
    revision: Annotated[
        str, Query(description="Branch, tag or commit.", pattern=r"^[\w./-]+$", max_length=200)
    ] = "main",
) -> Repository:
    """To download a file, put its name into an item of the task `download`, with `repo` and `revision`."""
    hub = (os.environ.get("HF_ENDPOINT") or HUB).rstrip("/")
    client = DownloadClient(Allowed.from_environment(), hub, read_secrets().get("HF_TOKEN"))
    try:
        found = files_of(client, "models", f"{owner}/{name}", revision)
    except NotFound as error:
        raise NoSuchRepository(str(error), "Correct its name or revision.") from error
    except Denied as error:
        raise HubDenied(str(error), "See the page of the repository.") from error
    except SourceError as error:
        raise HubUnreachable(str(error), "Check the network, then try again.") from error
    files = [HubFileView.model_validate(file, from_attributes=True) for file in found]
    return Repository(repo=f"{owner}/{name}", revision=revision, url=f"{hub}/{owner}/{name}", files=files)
