"""Tag pictures by a WD14 tagger."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from flowloom.errors import Problem
from flowloom.tasks.base import Task
from flowloom.tasks.tagging.config import REPO_PATTERN, DescribingConfig, look_for_data, look_for_model

MODEL, LABELS = "model.onnx", "selected_tags.csv"
"""The files of a tagger."""


class TagConfig(DescribingConfig):
    """Which tags of which model are written, and how they are spelled."""

    repo: str = Field(
        "SmilingWolf/wd-swinv2-tagger-v3",
        pattern=REPO_PATTERN,
        description="The tagger on the hub: model.onnx and selected_tags.csv, as SmilingWolf's are.",
        examples=[
            "SmilingWolf/wd-eva02-large-tagger-v3",
            "SmilingWolf/wd-vit-large-tagger-v3",
            "SmilingWolf/wd-swinv2-tagger-v3",
            "SmilingWolf/wd-convnext-tagger-v3",
            "SmilingWolf/wd-vit-tagger-v3",
        ],
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="cuda needs the package onnxruntime-gpu in place of onnxruntime."
    )
    general_threshold: float = Field(
        0.35, ge=0, le=1, description="General tags at least so probable are written."
    )
    character_threshold: float = Field(0.85, ge=0, le=1, description="The same of characters.")
    general_mcut: bool = Field(
        False,
        description="The threshold of general tags is the widest gap between a picture's probabilities.",
    )
    character_mcut: bool = Field(False, description="The same of characters, 0.15 at the least.")
    characters: Literal["first", "last", "off"] = Field(
        "first", description="Where characters stand: before or after general tags, or nowhere."
    )
    expand_characters: bool = Field(False, description="name_(series) becomes two tags: name, series.")
    rating: Literal["off", "first", "last"] = Field(
        "off", description="Where the most probable rating stands."
    )
    rating_prefix: str = Field("rating:", description="Before the rating, which alone would read as a tag.")
    order: Literal["score", "model", "alphabet"] = Field(
        "score",
        description="Of tags of one category: by probability, as the model lists them, by the alphabet.",
    )
    first_tags: list[str] = Field(
        [], description="Tags that stand first where they are found: 1girl, 1boy ..."
    )
    blacklist: list[str] = Field([], description="Tags that are never written, with spaces or underscores.")
    replacements: dict[str, str] = Field({}, description="Tags to be written otherwise: from -> to.")
    replace_underscores: bool = Field(
        True, description="long_hair becomes long hair; faces such as ^_^ stay as they are."
    )
    max_tags: int = Field(0, ge=0, description="Only so many general tags, the most probable; 0: all.")


def _look(config: TagConfig) -> list[Problem]:
    return [*look_for_data(config), *look_for_model(config, [MODEL, LABELS])]


TASK = Task(
    name="tag",
    title="Tag pictures",
    config_type=TagConfig,
    work="flowloom.tasks.tagging.wd14:tag",
    look=_look,
)
