"""Tokens of other services: set, never read back."""

from __future__ import annotations

from typing import Literal

from fastapi import status
from pydantic import BaseModel, ConfigDict, Field

from flowloom.config.secrets import NAMES, read_secrets, write_secret
from flowloom.server.accounts import ServiceUnreachable, hub_account, wandb_account
from flowloom.server.off_loop import Router, in_group
from flowloom.server.problems import ServiceError, problems

router = Router(tags=["secrets"], responses=problems())
_TESTS = {"HF_TOKEN": hub_account, "WANDB_API_KEY": wandb_account}
Testable = Literal["HF_TOKEN", "WANDB_API_KEY"]
Name = Literal["HF_TOKEN", "WANDB_API_KEY", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"]


class Secret(BaseModel):
    """A secret and if it is set."""

    name: str = Field(examples=["HF_TOKEN"])
    is_set: bool


class NotSet(ServiceError):
    status, code, title = 409, "secret-not-set", "This secret is not set."


class TokenVerdict(BaseModel):
    """The result of a token test."""

    is_accepted: bool
    account: str | None = Field(
        description="Account of the token; null if it is not accepted.", examples=["ada"]
    )


class Value(BaseModel):
    """A secret's new value."""

    model_config = ConfigDict(extra="forbid")

    value: str = Field(min_length=1, max_length=4096, examples=["the token"])


@router.get("/secrets", summary="List secrets")
def list_secrets() -> list[Secret]:
    """Names only, never values."""
    known = read_secrets()
    return [Secret(name=name, is_set=name in known) for name in NAMES]


@router.put("/secrets/{name}", summary="Set a secret", status_code=status.HTTP_204_NO_CONTENT)
def set_secret(name: Name, body: Value) -> None:
    """Stored in a file readable by its owner only, and passed to runs as an environment variable."""
    write_secret(name, body.value)


@router.delete("/secrets/{name}", summary="Delete a secret", status_code=status.HTTP_204_NO_CONTENT)
def forget_secret(name: Name) -> None:
    """From the file. A value from the environment stays."""
    write_secret(name, None)


@router.post("/secrets/{name}/test", summary="Test a secret", responses=problems(NotSet, ServiceUnreachable))
@in_group("waiting")
def try_secret(name: Testable) -> TokenVerdict:
    """Send it to its service. To test keys of object stores, use POST /api/stores/test."""
    token = read_secrets().get(name)
    if not token:
        raise NotSet(f"{name} is neither in the file nor in the environment.", f"PUT /api/secrets/{name}")
    account = _TESTS[name](token)
    return TokenVerdict(is_accepted=account is not None, account=account)
