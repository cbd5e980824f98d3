"""Sections on copies of a run elsewhere: the Hugging Face hub and a bucket."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_validator

from flowloom.schema import SIMPLE, Section, ui


class HubSection(Section):
    """Upload checkpoints to the Hugging Face hub in the background."""

    repo_id: str | None = None
    """Repository, OWNER/NAME (FLOW's `hf_repo_id`); the token is HF_TOKEN. null: no upload."""
    private: bool = True
    """Create the repository as private."""


_BUCKET = re.compile(r"(s3|gs|az)://[A-Za-z0-9._$-]+(/[^?#@]*)?")


def _bucket(address: str) -> str:
    if not _BUCKET.fullmatch(address):
        # Without the address, which may contain keys.
        raise ValueError(
            "write s3://BUCKET/FOLDER, gs:// or az://; keys come from the environment or a profile"
        )
    return address


class MirrorSection(Section):
    """Copy the run to an object store while it trains, so that another machine can continue it."""

    url: Annotated[
        Annotated[str, AfterValidator(_bucket), Field(json_schema_extra={"pattern": f"^{_BUCKET.pattern}$"})]
        | None,
        SIMPLE,
    ] = None
    """Folder in a bucket, such as s3://bucket/runs; the run is below it, by its name. Access is set in
    `storage`. null: no mirror."""
    bandwidth_mib: Annotated[Annotated[float, Field(gt=0)] | None, ui(unit="MiB/s")] = None
    """Maximum upload rate of large files while the run trains; null: no limit."""
    seconds_to_finish: Annotated[float, Field(ge=0), ui(unit="s")] = 90.0
    """Maximum time from a stop signal, such as the notice of a spot instance, to the end of the upload."""

    @model_validator(mode="before")
    @classmethod
    def _by_url(cls, given: Any) -> Any:
        return {"url": given} if isinstance(given, str) else given
