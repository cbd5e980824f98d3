"""Tag images with a WD14 tagger."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from flowloom.errors import Problem
from flowloom.tasks.base import FunctionTask, Progress
from flowloom.tasks.tagging.config import MODEL as MODEL_GROUP
from flowloom.tasks.tagging.config import REPO_PATTERN, DescribingConfig, look_for_data, look_for_model

if TYPE_CHECKING:
    from collections.abc import Callable

    from flowloom.tasks.tagging.wd14 import Wd14Tagger

MODEL, LABELS = "model.onnx", "selected_tags.csv"
"""Files of a tagger."""


class TagConfig(DescribingConfig, title="Tags"):
    """The tagger, and the selection and spelling of tags."""

    repo: Annotated[str, MODEL_GROUP] = Field(
        "SmilingWolf/wd-swinv2-tagger-v3",
        pattern=REPO_PATTERN,
        description="Tagger on the Hugging Face hub, with model.onnx and selected_tags.csv.",
        examples=[
            "SmilingWolf/wd-eva02-large-tagger-v3",
            "SmilingWolf/wd-vit-large-tagger-v3",
            "SmilingWolf/wd-swinv2-tagger-v3",
            "SmilingWolf/wd-convnext-tagger-v3",
            "SmilingWolf/wd-vit-tagger-v3",
        ],
    )
    device: Annotated[Literal["auto", "cpu", "cuda"], MODEL_GROUP] = Field(
        "auto", description="cuda needs the package onnxruntime-gpu instead of onnxruntime."
    )
    general_threshold: float = Field(0.35, ge=0, le=1, description="Minimum probability of general tags.")
    character_threshold: float = Field(0.85, ge=0, le=1, description="Minimum probability of character tags.")
    general_mcut: bool = Field(
        False,
        description="MCut: threshold of general tags per image, at the widest gap between probabilities.",
    )
    character_mcut: bool = Field(False, description="MCut for character tags, with a minimum of 0.15.")
    characters: Literal["first", "last", "off"] = Field(
        "first", description="Position of character tags: before or after general tags, or left out."
    )
    expand_characters: bool = Field(False, description="Split name_(series) into two tags: name, series.")
    rating: Literal["off", "first", "last"] = Field(
        "off", description="Position of the most probable rating tag."
    )
    rating_prefix: str = Field("rating:", description="Prefix of the rating tag.")
    order: Literal["score", "model", "alphabet"] = Field(
        "score",
        description="Order of tags in a category: by probability, as in the model, or alphabetical.",
    )
    first_tags: list[str] = Field([], description="Tags that come first if present: 1girl, 1boy ...")
    blacklist: list[str] = Field([], description="Tags to leave out, with spaces or underscores.")
    replacements: dict[str, str] = Field({}, description="Tags to rename: from -> to.")
    replace_underscores: bool = Field(
        True, description="Write long hair instead of long_hair; emoticons such as ^_^ stay."
    )
    max_tags: int = Field(
        0, ge=0, description="Maximum number of general tags, the most probable first; 0: no limit."
    )


def _find_problems(config: TagConfig) -> list[Problem]:
    return [*look_for_data(config), *look_for_model(config, [MODEL, LABELS])]


def _tag(config: TagConfig, progress: Progress) -> None:
    from flowloom.tasks.tagging.models import find_model
    from flowloom.tasks.tagging.run import describe
    from flowloom.tasks.tagging.wd14 import Wd14Tagger

    def find() -> Callable[[], Wd14Tagger]:
        model = find_model(config, [f"{MODEL}*", LABELS], progress)
        return partial(Wd14Tagger, model.folder, config, model.about | {"kind": "wd14"})

    describe(config, progress, find)


TAG = FunctionTask(
    name="tag",
    title="Tag images",
    config_type=TagConfig,
    find_problems=_find_problems,
    body=_tag,
)
