"""Qwen3-VL as the text encoder of Krea 2: states of twelve layers, of a chat whose answer is the image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowloom.models.header import read_small_json
from flowloom.models.language_model import LanguageModel, load_text_model, load_text_tokenizer
from flowloom.models.qwen_text import DROPPED, TEMPLATE

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from flowloom.models.family import ModelSettings

START, END = TEMPLATE.split("{}")
TAPPED = (2, 5, 8, 11, 14, 17, 20, 23, 26, 29, 32, 35)
"""Layers whose states the released network reads, from diffusers' Krea2Pipeline; 0 is the embedding."""
RELEASED: dict[str, Any] = {
    "model_type": "qwen3_vl",
    "text_config": {
        "vocab_size": 151_936,
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 262_144,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {
            "rope_type": "default",
            "mrope_section": [24, 20, 20],
            "mrope_interleaved": True,
            "rope_theta": 5e6,
        },
    },
}
"""The sizes of Qwen3-VL 4B, for files that have no config.json beside them."""


class Krea2Conditioner:
    """Captions to the states of their tokens, all tapped layers of a token side by side."""

    def __init__(self, model: LanguageModel, layers: Sequence[int]):
        self.model, self.layers = model, layers

    def count_tokens(self, captions: Sequence[str]) -> list[int]:
        """Tokens of each caption before it is cut, the end of the template included."""
        end = len(self._end)
        return [len(row) - DROPPED + end for row in self._rows(captions)]

    def encode(
        self,
        captions: Sequence[str],
        max_length: int,
        *,
        is_trimmed: bool = True,  # noqa: ARG002 -- padding is masked
    ) -> list[dict[str, Tensor]]:
        """`states` (T, N * C) of each caption, of N layers; T at most `max_length`."""
        if not captions:
            return []
        end = self._end
        cut = DROPPED + max_length - len(end)
        rows = [[*row[:cut], *end] for row in self._rows(captions)]
        states = self.model.states(rows, self.layers).flatten(2)
        return [{"states": own[DROPPED : len(row)]} for own, row in zip(states, rows, strict=True)]

    def _rows(self, captions: Sequence[str]) -> list[list[int]]:
        return self.model.rows([f"{START}{caption}" for caption in captions])

    @property
    def _end(self) -> list[int]:
        return self.model.rows([END])[0]


def open_qwen3_vl(model: ModelSettings, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Qwen3-VL's network without vision.

    Raises:
        WeightsError: see load_text_model.
    """
    return load_text_model(Path(model.text_encoder_path), device, dtype, RELEASED)


def load_krea2_conditioner(
    model: ModelSettings, device: torch.device, dtype: torch.dtype
) -> Krea2Conditioner:
    """The text encoder that `model` names; tapped layers from the pipeline's folder, if it states them."""
    tokenizer = load_text_tokenizer(Path(model.text_tokenizer_path or model.text_encoder_path))
    index = Path(model.path) / "model_index.json"
    layers = read_small_json(index).get("text_encoder_select_layers") or TAPPED
    return Krea2Conditioner(LanguageModel(open_qwen3_vl(model, device, dtype), tokenizer, device), layers)
