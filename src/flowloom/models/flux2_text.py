"""Captions as FLUX.2 reads them: three hidden layers of Qwen3 or Mistral 3, side by side, with padding."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flowloom.models.family import ModelSettings
from flowloom.models.language_model import LanguageModel, load_language_model, load_text_model

_QWEN_LAYERS, _MISTRAL_LAYERS = (9, 18, 27), (10, 20, 30)
_SYSTEM_MESSAGE = (
    "You are an AI that reasons about image descriptions. You give structured responses focusing on object "
    "relationships, object\nattribution and actions without speculation."
)
"""Of dev: black-forest-labs/flux2, src/flux2/system_messages.py; the line break is part of it."""


class Flux2Conditioner:
    """Captions to the states of all their tokens and of the padding."""

    def __init__(self, language_model: LanguageModel):
        self._language_model = language_model
        config: Any = language_model.model.config
        self._is_dev = config.model_type != "qwen3"
        self._layers = _MISTRAL_LAYERS if self._is_dev else _QWEN_LAYERS

    def count_tokens(self, captions: Sequence[str]) -> list[int]:
        """Tokens of each caption in its template, before it is cut."""
        return [len(row) for row in self._language_model.tokenizer(self._in_template(captions)).input_ids]

    @torch.no_grad()
    def encode(
        self,
        captions: Sequence[str],
        max_length: int,
        *,
        is_trimmed: bool = True,  # noqa: ARG002 -- padding is part of the text
    ) -> list[dict[str, Tensor]]:
        """`states` (max_length, 3 C) of each caption."""
        if not captions:
            return []
        # The tokenizer pads on its own side: Qwen's on the right, Mistral's on the left.
        rows = self._language_model.tokenizer(
            self._in_template(captions),
            padding="max_length",
            truncation=True,
            max_length=max_length,
            return_tensors="pt",
        ).to(self._language_model.device)
        model: Any = self._language_model.model
        found = model(rows.input_ids, rows.attention_mask, output_hidden_states=True, use_cache=False)
        states = torch.cat([found.hidden_states[layer] for layer in self._layers], dim=-1)
        return [{"states": own} for own in states]

    def encode_edit(self, caption: str, references: object, max_length: int) -> dict[str, Tensor]:  # noqa: ARG002
        """`encode` of a caption about reference images, which the text encoder does not see."""
        return self.encode([caption], max_length)[0]

    def _in_template(self, captions: Sequence[str]) -> list[str]:
        return [self._template(caption) for caption in captions]

    def _template(self, caption: str) -> str:
        render = self._language_model.tokenizer.apply_chat_template
        if not self._is_dev:
            messages = [{"role": "user", "content": caption}]
            return render(messages, tokenize=False, add_generation_prompt=True, enable_thinking=False)
        texts = {"system": _SYSTEM_MESSAGE, "user": caption.replace("[IMG]", "")}
        messages = [
            {"role": role, "content": [{"type": "text", "text": text}]} for role, text in texts.items()
        ]
        return render(messages, tokenize=False, add_generation_prompt=False)


def load_flux2_conditioner(
    model: ModelSettings, device: torch.device, dtype: torch.dtype
) -> Flux2Conditioner:
    """The text encoder that `model` names.

    Raises:
        WeightsError: see `load_language_model`.
    """
    path = Path(model.text_encoder_path)
    tokenizer = Path(model.text_tokenizer_path) if model.text_tokenizer_path else path
    return Flux2Conditioner(load_language_model(path, tokenizer, device, dtype))


def load_flux2_encoder(path: Path, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """The network of the text encoder alone."""
    return load_text_model(path, device, dtype)
