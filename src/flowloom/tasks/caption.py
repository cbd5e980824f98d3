"""Caption pictures by a network that writes sentences."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from flowloom.errors import Problem
from flowloom.tasks.base import Task
from flowloom.tasks.tagging.config import REPO_PATTERN, DescribingConfig, look_for_data, look_for_model

WEIGHTS = "model*.safetensors"
"""Pickles are never opened."""
DEFAULT_PROMPT = (
    "Describe this picture in one paragraph of plain English: subject, setting, composition, colours, light "
    "and style. Begin with what is seen; say nothing about what may be meant."
)


class CaptionConfig(DescribingConfig):
    """Which captioner writes, and what it is asked."""

    repo: str = Field(
        "florence-community/Florence-2-large",
        pattern=REPO_PATTERN,
        description="The captioner on the hub: BLIP, Florence-2, or a chat model that sees, of those that "
        "transformers knows by itself: code from the hub is never run.",
        examples=[
            "florence-community/Florence-2-large",
            "florence-community/Florence-2-base",
            "Salesforce/blip-image-captioning-large",
            "Qwen/Qwen3-VL-4B-Instruct",
            "fancyfeast/llama-joycaption-beta-one-hf-llava",
            "HuggingFaceTB/SmolVLM2-2.2B-Instruct",
        ],
    )
    batch_size: int = Field(4, ge=1, description="Pictures described at once.")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field(
        "auto", description="auto: CUDA, else MPS, else the CPU."
    )
    dtype: Literal["auto", "bf16", "fp32"] = Field("auto", description="auto: bf16 on CUDA, else fp32.")
    prompt: str = Field(
        "",
        description="What a chat model is asked; empty: for one paragraph of plain English. BLIP goes on "
        "from it: a photo of. Florence-2 is asked by its task.",
    )
    system_prompt: str = Field("", description="Of a chat model; empty: none, or its template's own.")
    task: Literal["caption", "detailed_caption", "more_detailed_caption"] = Field(
        "more_detailed_caption", description="Of Florence-2: how much it says."
    )
    max_tokens: int = Field(256, ge=1, description="A caption is cut at so many tokens.")
    beams: int = Field(1, ge=1, description="Beam search for BLIP and Florence-2: 3 is better and slower.")
    temperature: float = Field(
        0.0,
        ge=0,
        description="0: the most probable words. Above: drawn, more varied and less exact; 0.6, say.",
    )
    seed: int = Field(0, description="Of what is drawn.")
    max_side: Annotated[int, Field(ge=32)] = Field(
        1024,
        description="Larger pictures are scaled down to so many pixels a side: chat models pay for each.",
    )


def _look(config: CaptionConfig) -> list[Problem]:
    return [*look_for_data(config), *look_for_model(config, ["config.json", WEIGHTS])]


TASK = Task(
    name="caption",
    title="Caption pictures",
    config_type=CaptionConfig,
    work="flowloom.tasks.tagging.captioner:caption",
    look=_look,
)
