"""Import of configurations for Kohya's trainer."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from flowloom.errors import ConfigError
from flowloom.server.deps import Studio, StudioDep
from flowloom.server.off_loop import Router, in_group
from flowloom.server.problems import FieldProblem, Invalid, problems
from flowloom.server.runs.create import problems_of
from flowloom.trainers.kohya.imports import Files, from_bmaltais, from_toml
from flowloom.trainers.kohya.trainer import TRAINER

router = Router(tags=["training"], responses=problems())


class KohyaImportRequest(BaseModel):
    """A configuration file of sd-scripts or kohya_ss, with the files that it names."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    toml: str = Field(
        "",
        max_length=1_000_000,
        description="A configuration of sd-scripts.",
        examples=["learning_rate = 1e-4"],
    )
    dataset_toml: str = Field(
        "", max_length=1_000_000, description="The datasets that a configuration names.", examples=[""]
    )
    bmaltais: str = Field(
        "", max_length=1_000_000, description="A JSON configuration of kohya_ss.", examples=[""]
    )
    prompts: str = Field(
        "",
        max_length=1_000_000,
        description="The prompt file that a configuration names: lines, TOML or JSON.",
        examples=["a fox --w 768 --h 1024"],
    )


class KohyaImportResult(BaseModel):
    """The configuration that a file describes. Each key of the file is in one of the lists of keys."""

    config: dict[str, Any] = Field(description="For POST /api/kohya/config.")
    understood: list[str] = Field(description="Keys with the same value here.")
    translated: dict[str, str] = Field(description="Keys with another name here, and that name.")
    raw: dict[str, str] = Field(description="Keys that became raw arguments.")
    unused: dict[str, str] = Field(description="Keys without an effect in the file, and why.")
    left_over: dict[str, Any] = Field(description="Keys that could not be imported, with their values.")
    reasons: dict[str, str] = Field(description="Reasons for left-over keys, if known.")
    defaults: dict[str, Any] = Field(
        description="Values that the file does not state: sd-scripts' defaults where this studio's differ."
    )
    dropped: dict[str, str] = Field(description="Keys that held a secret, and what to do instead.")
    problems: list[FieldProblem] = Field(description="Problems of the configuration on this machine.")


@router.post("/kohya/import", summary="Read a configuration of sd-scripts or kohya_ss")
@in_group("waiting")
def import_config(body: KohyaImportRequest, studio: StudioDep) -> KohyaImportResult:
    """Nothing is saved: the result fills a form."""
    files = Files(body.dataset_toml, body.prompts, look=lambda path: _folders_in(studio, path))
    try:
        if body.bmaltais:
            found = from_bmaltais(body.bmaltais, files)
        else:
            found = from_toml(body.toml, body.dataset_toml, files)
    except ConfigError as error:
        raise Invalid.of(error.problems) from None
    return KohyaImportResult(
        config=found.config,
        understood=found.understood,
        translated=found.translated,
        raw=found.raw,
        unused=found.unused,
        left_over=found.left_over,
        reasons=found.reasons,
        defaults=found.defaults,
        dropped=found.dropped,
        problems=Invalid.of(problems_of(studio, TRAINER, found.config)).errors,
    )


def _folders_in(studio: Studio, path: str) -> list[str] | None:
    """Names of the folders in a folder; None if it does not exist or is not readable or outside the roots."""
    try:
        if "\0" in path or not studio.roots.contains(Path(path)):
            return None
        with os.scandir(Path(path).expanduser()) as entries:
            return [entry.name for entry in entries if entry.is_dir()]
    except (OSError, RuntimeError, UnicodeEncodeError):
        return None
