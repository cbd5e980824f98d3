"""Qwen2.5-VL as the text encoder of Qwen-Image: the last states of a chat whose answer is the image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowloom.models.language_model import LanguageModel, load_text_model, load_text_tokenizer

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from flowloom.models.family import ModelSettings

TEMPLATE = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, "
    "spatial relationships of the objects and background:<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n"
    "<|im_start|>assistant\n"
)
DROPPED = 34
"""Tokens of the template before the caption, whose states are left out."""
RELEASED: dict[str, Any] = {
    "model_type": "qwen2_5_vl",
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
}
"""The sizes of Qwen2.5-VL 7B, for files that have no config.json beside them."""


class QwenConditioner:
    """Captions to the states of their tokens, without the template's start."""

    def __init__(self, model: LanguageModel):
        self.model = model

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


def open_qwen(model: ModelSettings, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Qwen2.5-VL's network without vision.

    Raises:
        WeightsError: see load_text_model.
    """
    path = Path(model.text_encoder_path)
    has_config = ((path if path.is_dir() else path.parent) / "config.json").is_file()
    return load_text_model(path, device, dtype, None if has_config else RELEASED)


def load_qwen_conditioner(model: ModelSettings, device: torch.device, dtype: torch.dtype) -> QwenConditioner:
    """The text encoder that `model` names."""
    tokenizer = load_text_tokenizer(Path(model.text_tokenizer_path or model.text_encoder_path))
    return QwenConditioner(LanguageModel(open_qwen(model, device, dtype), tokenizer, device))
