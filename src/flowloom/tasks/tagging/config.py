"""What tagging and captioning share: which images, by which model, and what becomes of older captions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from flowloom.errors import Problem
from flowloom.schema import Section, ui

JSONL = ".jsonl"
IMAGES, MODEL = ui(group="Images"), ui(group="Model")


class DescribingConfig(Section):
    """Images to be described, and where their captions go."""

    data_path: Annotated[str, IMAGES] = Field(
        min_length=1, description="A folder of images, nested as one likes, or FLOW's JSONL."
    )
    image_folder_path: Annotated[str, IMAGES] = Field(
        "",
        description="The folder that names in a JSONL are relative to; empty: its own.",
    )
    caption_suffix: Annotated[Literal[".txt", ".caption"], IMAGES] = Field(
        ".txt", description="Of the files beside the images of a folder."
    )
    existing: Annotated[Literal["skip", "replace", "append", "prepend"], IMAGES] = Field(
        "skip",
        description="What is done where a image has a caption: left as it is, replaced, or added to.",
    )
    trigger: Annotated[str, IMAGES] = Field(
        "", description="Put before every caption that is written: a trigger word."
    )
    preview: Annotated[int, IMAGES] = Field(
        0,
        ge=0,
        description="Only so many images, spread over the set: shown in the result, nothing is written.",
    )
    batch_size: Annotated[int, MODEL] = Field(8, ge=1, description="Images described at once.")
    max_megapixels: Annotated[float, Field(gt=0), ui(unit="megapixels", group="Images")] = Field(
        100.0, description="Larger images are taken for decompression bombs, and named as unusable."
    )
    revision: Annotated[str, MODEL] = Field(
        "", description="Of the model on the hub: a branch, tag or commit; empty: the newest."
    )
    model_path: Annotated[str, MODEL] = Field(
        "", description="A folder with the model's files, in place of one from the hub."
    )
    models_dir: Annotated[str, MODEL] = Field(
        "", description="Where models from the hub are kept; empty: the hub's own cache."
    )


REPO_PATTERN = r"^[\w.-]+/[\w.-]+$"


def look_for_data(config: DescribingConfig) -> list[Problem]:
    """What of the images is not there."""
    path = Path(config.data_path)
    if not path.exists():
        return [Problem("data_path", f"{path} does not exist.", "not-found")]
    if path.is_file() and path.suffix.lower() != JSONL:
        return [Problem("data_path", f"{path} is neither a folder nor a {JSONL} file.")]
    folder = config.image_folder_path
    if folder and not Path(folder).is_dir():
        return [Problem("image_folder_path", f"{folder} is no folder.")]
    return []


def look_for_model(config: DescribingConfig, needed: Sequence[str]) -> list[Problem]:
    """What a local model lacks of the files `needed`, each a pattern."""
    if not config.model_path:
        return []
    folder = Path(config.model_path)
    if not folder.is_dir():
        return [Problem("model_path", f"{folder} is no folder.")]
    missing = [pattern for pattern in needed if not any(folder.glob(pattern))]
    return [Problem("model_path", f"{folder} has no {pattern}.") for pattern in missing]
