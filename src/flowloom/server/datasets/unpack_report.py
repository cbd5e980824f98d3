"""The report on a zip's unpacking, as the API returns it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field

from flowloom.files import read_json


class UnpackView(BaseModel):
    """The unpacking of a zip."""

    state: Literal["unpacking", "done", "refused", "failed"] = Field(default="unpacking", examples=["done"])
    num_done: int = Field(default=0, description="Entries that were read.")
    num_entries: int = Field(default=0, description="Entries of the zip; 0: not known yet.")
    num_files: int = Field(default=0, description="Files that were added to the dataset.", examples=[24])
    num_images: int = 0
    num_left_out: int = 0
    reasons: dict[str, int] = Field(default={}, description="Number of entries left out, by reason.")
    left_out: list[tuple[str, str]] = Field(
        default=[], description="Name and reason of the first entries left out."
    )
    error: str = ""


def read_report(path: Path) -> UnpackView | None:
    """The report at `path`; None if it is missing or damaged."""
    try:
        return UnpackView.model_validate(read_json(path))
    except (OSError, ValueError):
        return None
