"""Caption images with a vision-language model."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from flowloom.errors import Problem
from flowloom.schema import ui
from flowloom.tasks.base import FunctionTask, Progress
from flowloom.tasks.tagging.config import MODEL, REPO_PATTERN, DescribingConfig, look_for_data, look_for_model

if TYPE_CHECKING:
    from collections.abc import Callable

    from flowloom.tasks.tagging.captioner import CaptionWriter

WEIGHTS = "model*.safetensors"
"""Pickles are never opened."""
FILES = ("*.json", WEIGHTS, "*.model", "*.txt", "*.jinja")
"""Of a repository: the network, its tokenizer and its template; no code, no pickles."""
DEFAULT_PROMPT = (
    "Describe this image in one paragraph of plain English: subject, setting, composition, colours, light "
    "and style. Begin with what is seen; say nothing about what may be meant."
)


class CaptionConfig(DescribingConfig, title="Captions"):
    """The captioner and its prompt."""

    repo: Annotated[str, MODEL] = Field(
        "florence-community/Florence-2-large",
        pattern=REPO_PATTERN,
        description="Captioner on the Hugging Face hub: BLIP, Florence-2, or a vision-language chat model "
        "that transformers supports natively. Code from the hub is never run.",
        examples=[
            "florence-community/Florence-2-large",
            "florence-community/Florence-2-base",
            "Salesforce/blip-image-captioning-large",
            "Qwen/Qwen3-VL-4B-Instruct",
            "fancyfeast/llama-joycaption-beta-one-hf-llava",
            "HuggingFaceTB/SmolVLM2-2.2B-Instruct",
        ],
    )
    batch_size: Annotated[int, MODEL] = Field(4, ge=1, description="Images captioned at once.")
    device: Annotated[Literal["auto", "cpu", "cuda", "mps"], MODEL] = Field(
        "auto", description="auto: CUDA, MPS or CPU, the first that is available."
    )
    dtype: Annotated[Literal["auto", "bf16", "fp32"], MODEL] = Field(
        "auto", description="auto: bf16 on CUDA, otherwise fp32."
    )
    prompt: str = Field(
        "",
        description="Prompt of a chat model; empty: one paragraph of plain English. BLIP continues it "
        "(a photo of). Florence-2 uses its task instead.",
    )
    system_prompt: str = Field(
        "", description="System prompt of a chat model; empty: that of its template, if any."
    )
    task: Literal["caption", "detailed_caption", "more_detailed_caption"] = Field(
        "more_detailed_caption", description="Level of detail of Florence-2."
    )
    max_tokens: Annotated[int, ui(unit="tokens")] = Field(
        256, ge=1, description="Maximum length of a caption in tokens."
    )
    beams: int = Field(
        1, ge=1, description="Beams of the beam search of BLIP and Florence-2: 3 is better and slower."
    )
    temperature: float = Field(
        0.0,
        ge=0,
        description="0: always the most probable word. Higher, such as 0.6: more varied and less exact.",
    )
    seed: int = Field(0, description="Seed of the sampling of words.")
    max_side: Annotated[int, Field(ge=32), ui(unit="pixels")] = Field(
        1024,
        description="Larger images are scaled down to this many pixels per side; chat models get faster.",
    )


def _find_problems(config: CaptionConfig) -> list[Problem]:
    return [*look_for_data(config), *look_for_model(config, ["config.json", WEIGHTS])]


def _caption(config: CaptionConfig, progress: Progress) -> None:
    from flowloom.tasks.tagging.captioner import CaptionWriter
    from flowloom.tasks.tagging.models import find_model
    from flowloom.tasks.tagging.run import describe

    def find() -> Callable[[], CaptionWriter]:
        model = find_model(config, [WEIGHTS] if config.model_path else FILES, progress)
        return partial(CaptionWriter, model.folder, config, model.about)

    describe(config, progress, find)


CAPTION = FunctionTask(
    name="caption",
    title="Caption images",
    config_type=CaptionConfig,
    find_problems=_find_problems,
    body=_caption,
)
