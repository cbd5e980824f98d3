"""Qwen2.5-VL as the text encoder of Qwen-Image: the last states of a chat whose answer is the image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from flowloom.import_warnings import quiet_imports
from flowloom.models.header import read_small_json
from flowloom.models.language_model import (
    LanguageModel,
    fill_tables,
    load_text_model,
    load_text_tokenizer,
)
from flowloom.models.reference_sizes import with_pixels
from flowloom.models.weights import assign_weights, open_weights

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from flowloom.models.family import ModelSettings

_CHAT = "<|im_start|>system\n{}<|im_end|>\n<|im_start|>user\n{{}}<|im_end|>\n<|im_start|>assistant\n"
TEMPLATE = _CHAT.format(
    "Describe the image by detailing the color, shape, size, texture, quantity, text, spatial relationships "
    "of the objects and background:"
)
EDIT_TEMPLATE = _CHAT.format(
    "Describe the key features of the input image (color, shape, size, texture, objects, background), then "
    "explain how the user's text instruction should alter or modify the image. Generate a new image that "
    "meets the user's requirements while maintaining consistency with the original input where appropriate."
)
EDIT_IMAGE = "Picture {}: <|vision_start|>{}<|vision_end|>"
FIRST_EDIT_IMAGE = "<|vision_start|>{1}<|vision_end|>"
DROPPED, EDIT_DROPPED = 34, 64
"""Tokens of the templates before the caption, whose states are left out."""
IMAGE_TOKEN = "<|image_pad|>"
SEEN_SIDE = 384
"""Side of a square with as many pixels as a reference image that Qwen2.5-VL sees."""
RELEASED: dict[str, Any] = {
    "model_type": "qwen2_5_vl",
    "image_token_id": 151_655,
    "video_token_id": 151_656,
    "vision_start_token_id": 151_652,
    "vision_end_token_id": 151_653,
    "text_config": {
        "vocab_size": 152_064,
        "hidden_size": 3584,
        "intermediate_size": 18_944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "max_position_embeddings": 128_000,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1e6},
    },
    "vision_config": {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "out_hidden_size": 3584},
}
"""The sizes of Qwen2.5-VL 7B, for files that have no config.json beside them."""


class QwenConditioner:
    """Captions to the states of their tokens, without the template's start.

    Args:
        open_vision: the whole model around the text part of `model`, for captions with reference images.
        is_first_edit: these are for the first Qwen-Image-Edit, which sees them as large as the network does.
    """

    def __init__(
        self,
        model: LanguageModel,
        open_vision: Callable[[nn.Module], nn.Module],
        *,
        is_first_edit: bool = False,
    ):
        self.model = model
        self._is_first_edit = is_first_edit
        self._open_vision = open_vision
        self._whole: Any = None

    def count_tokens(self, captions: Sequence[str]) -> list[int]:
        """Tokens of each caption before it is cut, the end of the template included."""
        return [len(row) - DROPPED for row in self._rows(captions)]

    def encode(
        self,
        captions: Sequence[str],
        max_length: int,
        *,
        is_trimmed: bool = True,  # noqa: ARG002 -- padding is masked
    ) -> list[dict[str, Tensor]]:
        """`states` (T, C) of each caption, T at most `max_length`."""
        if not captions:
            return []
        rows = [row[: DROPPED + max_length] for row in self._rows(captions)]
        states = self.model.states(rows, (-1,))[:, :, 0]
        return [{"states": own[DROPPED : len(row)]} for own, row in zip(states, rows, strict=True)]

    def _rows(self, captions: Sequence[str]) -> list[list[int]]:
        return self.model.rows([TEMPLATE.format(caption) for caption in captions])

    @torch.no_grad()
    def encode_edit(
        self, caption: str, references: Sequence[NDArray[np.uint8]], max_length: int
    ) -> dict[str, Tensor]:
        """`states` (T, C) of `caption` about the images `references` (h, w, 3), whose tokens come first.

        Tokens of images have positions in two dimensions, as in the training of Qwen-Image-Edit; diffusers'
        pipeline with transformers 5 leaves them out.
        """
        self._whole = self._whole or self._open_vision(self.model.model)
        images = references if self._is_first_edit else [_as_seen(image) for image in references]
        seen = _processor()(images=list(images), return_tensors="pt")
        grids, token = seen["image_grid_thw"], self._whole.config.image_token_id
        counts = [int(grid.prod()) // 4 for grid in grids]  # a token is 2 x 2 patches
        template = FIRST_EDIT_IMAGE if self._is_first_edit else EDIT_IMAGE
        spelled = (
            template.format(number, IMAGE_TOKEN * count) for number, count in enumerate(counts, start=1)
        )
        (row,) = self.model.rows([EDIT_TEMPLATE.format("".join(spelled) + caption)])
        ids = torch.tensor([row[: EDIT_DROPPED + sum(counts) + max_length]]).to(self.model.device)
        output = self._whole(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values=seen["pixel_values"].to(self.model.device, self._whole.dtype),
            image_grid_thw=grids.to(self.model.device),
            mm_token_type_ids=(ids == token).int(),
            use_cache=False,
        )
        return {"states": output.last_hidden_state[0, EDIT_DROPPED:]}


def _processor() -> Any:
    with quiet_imports():
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
    return Qwen2VLImageProcessorPil()


def _as_seen(pixels: NDArray[np.uint8]) -> Any:
    from PIL import Image

    image = Image.fromarray(pixels)
    return image.resize(with_pixels(image.width, image.height, SEEN_SIDE), Image.Resampling.LANCZOS)


def open_qwen(model: ModelSettings, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Qwen2.5-VL's network without vision.

    Raises:
        WeightsError: see load_text_model.
    """
    return load_text_model(Path(model.text_encoder_path), device, dtype, RELEASED)


def _open_vision(path: Path, device: torch.device, dtype: torch.dtype, text: nn.Module) -> nn.Module:
    """The model in `path` around its loaded part `text`.

    Raises:
        WeightsError: the part for vision is missing or damaged.
    """
    with quiet_imports():
        from transformers import Qwen2_5_VLConfig, Qwen2_5_VLModel
    beside = read_small_json((path if path.is_dir() else path.parent) / "config.json")
    config = Qwen2_5_VLConfig.from_dict(beside or RELEASED)
    with torch.device("meta"):
        whole: Any = Qwen2_5_VLModel(config)
    fill_tables(whole.visual)
    assign_weights(whole.visual, open_weights(path).below("visual.", "model.visual."), device, dtype)
    whole.visual.to(device)
    whole.language_model = text
    return whole.eval().requires_grad_(False)


def load_qwen_conditioner(model: ModelSettings, device: torch.device, dtype: torch.dtype) -> QwenConditioner:
    """The text encoder that `model` names."""
    path = Path(model.text_encoder_path)
    tokenizer = load_text_tokenizer(Path(model.text_tokenizer_path or path))
    text = LanguageModel(open_qwen(model, device, dtype), tokenizer, device)
    open_vision = partial(_open_vision, path, device, dtype)
    return QwenConditioner(text, open_vision, is_first_edit=is_first_edit(model))


def is_first_edit(model: ModelSettings) -> bool:
    """True for a diffusers folder of the first Qwen-Image-Edit; its single file shows no difference."""
    index = read_small_json(Path(model.path) / "model_index.json") if model.path else {}
    return index.get("_class_name") == "QwenImageEditPipeline"
