"""Captioning by a vision-language network (models/captioners.py)."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from flowloom.data.images.decode import load_image
from flowloom.data.images.headers import image_size
from flowloom.models.captioners import Question, load_captioner
from flowloom.models.device import choose_device
from flowloom.tasks.caption import DEFAULT_PROMPT, CaptionConfig
from flowloom.tasks.tagging.merging import Description

WHITE = (255, 255, 255)


class CaptionWriter:
    """A `Captioner`: images to sentences."""

    def __init__(self, folder: Path, config: CaptionConfig, about: dict[str, Any]):
        """
        Raises:
            WeightsError: a file is missing or damaged, or the network is not known.
            ConfigError: there is no such device.
        """
        self.config = config
        device = choose_device(config.device, "device")
        auto = torch.bfloat16 if device.type == "cuda" else torch.float32
        dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}.get(config.dtype, auto)
        self.captioner = load_captioner(folder, device, dtype)
        kind = self.captioner.kind
        self.about = about | {"kind": kind, "device": str(device), "dtype": str(dtype).removeprefix("torch.")}
        self._question = Question(
            prompt=config.prompt or (DEFAULT_PROMPT if kind == "chat" else ""),
            system_prompt=config.system_prompt,
            task=config.task,
            max_tokens=config.max_tokens,
            beams=config.beams,
            temperature=config.temperature,
        )

    def prepare(self, image: bytes) -> NDArray[Any]:
        """See Captioner: (h, w, 3) of 8 bits, in sRGB, upright, on white, no side above `max_side`."""
        width, height = image_size(image)
        shrink = max(1.0, max(width, height) / self.config.max_side)
        size = max(1, round(width / shrink)), max(1, round(height / shrink))
        return load_image(image, size, WHITE, self.config.max_megapixels)

    def describe(self, images: Sequence[Any], names: Sequence[str]) -> list[Description]:
        """See Captioner."""
        # Random words depend on the image, because a resumed run may start with another batch.
        seed = zlib.crc32(f"{self.config.seed} {names[0]}".encode("utf-8", "replace"))
        return [Description(text) for text in self.captioner.describe(images, self._question, seed)]
