"""Connection tests of object stores."""

from __future__ import annotations

import json
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from flowloom.server.datasets.subprocess_task import Failed, TakesLong, last_line, run_process
from flowloom.server.off_loop import Router, in_group
from flowloom.server.problems import problems
from flowloom.storage.base import StorageSection

router = Router(tags=["stores"], responses=problems(TakesLong, Failed))


class StoreTestRequest(BaseModel):
    """A bucket and its connection settings."""

    model_config = ConfigDict(extra="forbid")

    url: str = Field(
        pattern=r"^(s3|gs|az)://[^/@\s]+(/[^\x00-\x1f]*)?$", max_length=2048, examples=["s3://bucket/fox"]
    )
    storage: StorageSection = Field(
        default_factory=StorageSection, description="endpoint, region ...; keys are the studio's secrets."
    )


class StoreVerdict(BaseModel):
    """The result of a connection test."""

    ok: bool
    problem: Literal[
        "", "dns", "refused", "timeout", "unreachable", "tls", "region", "no-keys", "denied", "no-bucket",
        "unavailable", "other",
    ]  # fmt: skip
    detail: str
    hint: str
    first: str | None = Field(description="The first object in the bucket.")


@router.post("/stores/test", summary="Test a bucket's connection")
@in_group("waiting")
def test_store(body: StoreTestRequest) -> StoreVerdict:
    """Test every step from DNS to the first object. Keys are never returned."""
    request = {"verb": "test", "url": body.url, "storage": body.storage.model_dump(mode="json")}
    done = run_process(["flowloom.server.datasets.storage_process"], json.dumps(request), needs_secrets=True)
    if done.returncode:
        raise Failed(last_line(done.stderr), "Check the address and its settings.")
    return StoreVerdict.model_validate_json(done.stdout)
