"""What only Kohya's trainer has: configurations that people bring."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from flowloom.errors import ConfigError
from flowloom.server.deps import StudioDep
from flowloom.server.making import problems_of
from flowloom.server.problems import Invalid, Place, problems
from flowloom.trainers.kohya.imports import from_bmaltais, from_toml
from flowloom.trainers.kohya.trainer import TRAINER

router = APIRouter(tags=["training"], responses=problems())


class Brought(BaseModel):
    """One of the files that people have."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    toml: str = Field(
        "", max_length=1_000_000, description="sd-scripts' own.", examples=["learning_rate = 1e-4"]
    )
    dataset_toml: str = Field("", max_length=1_000_000, description="The one that it names.", examples=[""])
    bmaltais: str = Field("", max_length=1_000_000, description="What kohya_ss saves, JSON.", examples=[""])


class Understood(BaseModel):
    """What it says, in this studio's words."""

    config: dict[str, Any] = Field(description="For POST /api/kohya/config.")
    understood: list[str]
    left_over: dict[str, Any] = Field(description="Keys that have no place here, with their values.")
    dropped: dict[str, str] = Field(description="Keys that held a secret, and what to do instead.")
    problems: list[Place] = Field(description="What is wrong with it on this machine.")


@router.post("/kohya/import", summary="Read a configuration of sd-scripts or kohya_ss")
def import_config(body: Brought, studio: StudioDep) -> Understood:
    """Nothing is kept: the answer is what a form begins with."""
    try:
        found = from_bmaltais(body.bmaltais) if body.bmaltais else from_toml(body.toml, body.dataset_toml)
    except ConfigError as error:
        raise Invalid.of(error.problems) from None
    return Understood(
        config=found.config,
        understood=found.understood,
        left_over=found.left_over,
        dropped=found.dropped,
        problems=Invalid.of(problems_of(studio, TRAINER, found.config)).errors,
    )
