"""Networks that caption images: transformers' BLIP, Florence-2, and vision-language chat models."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from numpy.typing import NDArray
from PIL import Image

from flowloom.errors import OutOfMemoryError, WeightsError
from flowloom.import_warnings import quiet_imports

Pictures = Sequence[Image.Image]
_UNUSABLE = (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, ImportError)
"""Errors of transformers for damaged or unknown files."""


@dataclass(frozen=True)
class Question:
    """Prompts of a captioner, and limits of its output."""

    prompt: str = ""
    """For chat models; BLIP continues this text."""
    system_prompt: str = ""
    task: str = "more_detailed_caption"
    """Of Florence-2."""
    max_tokens: int = 256
    beams: int = 1
    temperature: float = 0.0
    """0: the most probable words; above: sampled."""


class Captioner:
    """A network and its processor; which of the three kinds they are follows from their files."""

    def __init__(self, model: Any, processor: Any, device: torch.device, dtype: torch.dtype):
        self.model = model.to(device).eval().requires_grad_(False)
        self.processor = processor
        self.device = device
        self.dtype = dtype
        self.kind = {"blip": "blip", "florence2": "florence2"}.get(model.config.model_type, "chat")
        if self.kind == "chat":
            _prepare_tokenizer(processor.tokenizer)

    @torch.no_grad()
    def describe(self, pictures: Sequence[NDArray[Any]], question: Question, seed: int) -> list[str]:
        """The caption of each of these images, (h, w, 3) of 8 bits; each in one line.

        Raises:
            OutOfMemoryError: the device has no memory for so many at once.
        """
        images = [Image.fromarray(picture) for picture in pictures]
        inputs, num_given = _ASKED[self.kind](self.processor, images, question)
        drawn = {"do_sample": True, "temperature": question.temperature} if question.temperature else {}
        try:
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                ids = self.model.generate(
                    **inputs.to(self.device, self.dtype),
                    max_new_tokens=min(question.max_tokens, self._room(inputs)),
                    num_beams=question.beams,
                    **(drawn or {"do_sample": False}),
                )
        except torch.OutOfMemoryError as error:
            raise OutOfMemoryError(
                f"{len(images)} images at once are too many for the memory of {self.device}: "
                "lower batch_size, max_side or max_tokens, then resume the run."
            ) from error
        texts = self.processor.batch_decode(ids[:, num_given:], skip_special_tokens=True)
        return [" ".join(text.split()) for text in texts]

    def _room(self, inputs: Any) -> float:
        """The maximum number of new tokens: BLIP and Florence-2 have a fixed number of positions."""
        if self.kind == "chat":
            return float("inf")
        used = inputs["input_ids"].shape[1] if self.kind == "blip" and "input_ids" in inputs else 1
        return max(1, self.model.config.text_config.max_position_embeddings - used - 1)


def load_captioner(folder: Path, device: torch.device, dtype: torch.dtype) -> Captioner:
    """The captioner in `folder`: config.json, model*.safetensors, the processor's files.

    Code beside them is never run, and pickles are never opened.

    Raises:
        WeightsError: a file is missing or damaged, or transformers does not know the network.
    """
    _check_folder(folder)
    with quiet_imports():
        from transformers import AutoModelForImageTextToText, AutoProcessor
        from transformers.utils.logging import disable_progress_bar
    from safetensors import SafetensorError

    disable_progress_bar()
    here: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        processor = cast("Any", AutoProcessor.from_pretrained(folder, **here))
        found: Any = AutoModelForImageTextToText.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, output_loading_info=True, **here
        )
    except (*_UNUSABLE, SafetensorError) as error:
        raise WeightsError(f"{folder}: transformers cannot load it: {_short_message(error)}") from error
    model, info = found
    if info["missing_keys"]:
        raise WeightsError(
            f"{folder}: its weights are missing {len(info['missing_keys'])} tensors of the network, such as "
            f"{min(info['missing_keys'])}: they need the repository's own code, which is not run. "
            "For Florence-2, use one of florence-community on the hub."
        )
    if model.config.model_type not in ("blip", "florence2") and not getattr(processor, "chat_template", None):
        raise WeightsError(
            f"{folder}: {model.config.model_type} is neither BLIP nor Florence-2, and has no chat template."
        )
    return Captioner(model, processor, device, dtype)


def _check_folder(folder: Path) -> None:
    if not any(folder.glob("model*.safetensors")):
        raise WeightsError(
            f"{folder}: there is no model.safetensors. Pickles are never opened: search for a "
            "revision with safetensors on the hub, such as refs/pr/1."
        )
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{folder / 'config.json'}: not readable ({error}).") from error
    if not isinstance(config, dict) or "model_type" not in config:
        raise WeightsError(f"{folder / 'config.json'}: not a model's configuration: it has no model_type.")


def _short_message(error: Exception) -> str:
    """The message of transformers without its long explanation."""
    text = str(error).strip()
    lacks_torchvision = importlib.util.find_spec("torchvision") is None
    if lacks_torchvision and ("video processor" in text or "torchvision" in text.lower()):
        # Its video processor is loaded for images too.
        return "this one needs torchvision. Install the version that belongs to this torch."
    return next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)


def _prepare_tokenizer(tokenizer: Any) -> None:
    """Pad on the left, because generation continues at the right end of each row."""
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token


def _ask_blip(processor: Any, images: Pictures, question: Question) -> tuple[Any, int]:
    if not question.prompt:
        return processor(images=list(images), return_tensors="pt"), 0
    return processor(images=list(images), text=[question.prompt] * len(images), return_tensors="pt"), 0


def _ask_florence(processor: Any, images: Pictures, question: Question) -> tuple[Any, int]:
    task = f"<{question.task.upper()}>"
    return processor(images=list(images), text=[task] * len(images), return_tensors="pt"), 0


def _ask_chat(processor: Any, images: Pictures, question: Question) -> tuple[Any, int]:
    text = _chat_text(processor, question)
    bos = processor.tokenizer.bos_token
    inputs = processor(
        images=[[image] for image in images],
        text=[text] * len(images),
        return_tensors="pt",
        padding=True,
        add_special_tokens=not (bos and text.startswith(bos)),
    )
    return inputs, inputs["input_ids"].shape[1]


def _chat_text(processor: Any, question: Question) -> str:
    """The conversation about one image in the model's chat template.

    Most templates take a message in parts, one of which is the image. Others take only text: then the
    image's token is put into the text, unless they add it themselves.
    """
    parts = [{"type": "image"}, {"type": "text", "text": question.prompt}]
    with_picture, without = (_rendered(processor, question, content) for content in (parts, parts[1:]))
    if with_picture and with_picture != without and "'type': 'text'" not in with_picture:
        return with_picture
    token = processor.image_token
    for content in (question.prompt, f"{token}\n{question.prompt}"):
        text = _rendered(processor, question, content)
        if text and token in text:
            return text
    raise WeightsError("the captioner's chat template has no place for an image.")


def _rendered(processor: Any, question: Question, content: Any) -> str | None:
    """None if the template does not accept such a message."""
    from jinja2 import TemplateError

    before = question.system_prompt
    if before and not isinstance(content, str):
        before = [{"type": "text", "text": before}]
    messages = [{"role": "system", "content": before}] if before else []
    messages.append({"role": "user", "content": content})
    try:
        return processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    except (TemplateError, TypeError):
        return None


_ASKED: dict[str, Callable[[Any, Pictures, Question], tuple[Any, int]]] = {
    "blip": _ask_blip,
    "florence2": _ask_florence,
    "chat": _ask_chat,
}
"""Inputs of the network, and the number of prompt ids at the start of its output."""
