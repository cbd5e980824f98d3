"""Settings of both tagging and captioning: images, model, and treatment of existing captions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from flowloom.errors import Problem
from flowloom.schema import Section, ui
from flowloom.storage.base import StorageSection, scheme_of

JSONL = ".jsonl"
IMAGES, MODEL = ui(group="Images"), ui(group="Model")


def is_bucket(data_path: str) -> bool:
    """True if `data_path` is the URL of a folder in a bucket."""
    return scheme_of(data_path) in ("s3", "gs", "az")


class DescribingConfig(Section):
    """The images to describe, and their captions."""

    data_path: Annotated[str, IMAGES] = Field(
        min_length=1,
        description="A folder of images with any subfolders, in a bucket too (s3://...), or FLOW's JSONL.",
    )
    image_folder_path: Annotated[str, IMAGES] = Field(
        "",
        description="The folder that names in a JSONL are relative to; empty: the JSONL's.",
    )
    storage: Annotated[StorageSection, IMAGES] = Field(
        StorageSection(), description="Access to a bucket with the images."
    )
    caption_suffix: Annotated[Literal[".txt", ".caption"], IMAGES] = Field(
        ".txt", description="Suffix of the caption files beside the images of a folder."
    )
    existing: Annotated[Literal["skip", "replace", "append", "prepend"], IMAGES] = Field(
        "skip",
        description="Existing captions: keep, replace or extend them.",
    )
    trigger: Annotated[str, IMAGES] = Field(
        "", description="Text before every written caption, such as a trigger word."
    )
    preview: Annotated[int, IMAGES] = Field(
        0,
        ge=0,
        description="Describe only this many images, spread over the dataset, and write nothing.",
    )
    batch_size: Annotated[int, MODEL] = Field(8, ge=1, description="Images described at once.")
    processes: Annotated[int, MODEL] = Field(
        1, ge=1, description="Processes that describe images, one for each GPU, each with the model."
    )
    max_megapixels: Annotated[float, Field(gt=0), ui(unit="megapixels", group="Images")] = Field(
        100.0, description="Larger images are treated as decompression bombs and reported as unusable."
    )
    revision: Annotated[str, MODEL] = Field(
        "", description="Revision of the model on the hub: a branch, tag or commit; empty: the newest."
    )
    model_path: Annotated[str, MODEL] = Field(
        "", description="A folder with the model's files, instead of one from the hub."
    )
    models_dir: Annotated[str, MODEL] = Field(
        "", description="Folder of models from the hub; empty: the hub's default cache."
    )


REPO_PATTERN = r"^[\w.-]+/[\w.-]+$"


def look_for_data(config: DescribingConfig) -> list[Problem]:
    """Problems of missing images."""
    if is_bucket(config.data_path):
        return []  # listed when the run starts
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
    """Problems of missing files in a local model; `needed` are patterns."""
    if not config.model_path:
        return []
    folder = Path(config.model_path)
    if not folder.is_dir():
        return [Problem("model_path", f"{folder} is no folder.")]
    missing = [pattern for pattern in needed if not any(folder.glob(pattern))]
    return [Problem("model_path", f"{folder} has no {pattern}.") for pattern in missing]
