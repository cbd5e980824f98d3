"""Captions as FLUX.2 reads them: three hidden layers of Qwen3 or Mistral 3, side by side, with padding."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flowloom.models.family import ModelSettings
from flowloom.models.header import read_small_json
from flowloom.models.language_model import LanguageModel, load_text_model, load_text_tokenizer
from flowloom.models.weights import open_weights

_QWEN_LAYERS, _MISTRAL_LAYERS = (9, 18, 27), (10, 20, 30)
RELEASED_MISTRAL: dict[str, Any] = {
    "model_type": "mistral",
    "vocab_size": 131_072,
    "hidden_size": 5120,
    "intermediate_size": 32_768,
    "num_hidden_layers": 40,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e9},
}
"""The sizes of Mistral Small 3.1, for ComfyUI's file, which has its first 30 layers and no config.json."""
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
        assert self._layers[-1] == config.num_hidden_layers

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
        WeightsError: see `load_text_model`.
    """
    path = Path(model.text_encoder_path)
    tokenizer = load_text_tokenizer(Path(model.text_tokenizer_path) if model.text_tokenizer_path else path)
    return Flux2Conditioner(LanguageModel(load_flux2_encoder(path, device, dtype), tokenizer, device))


def load_flux2_encoder(path: Path, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """The network of the text encoder alone, up to the highest layer that is read.

    Raises:
        WeightsError: see `load_text_model`.
    """
    settings = read_small_json((path if path.is_dir() else path.parent) / "config.json")
    if "model_type" in settings:
        is_qwen = settings["model_type"] == "qwen3"
    else:
        is_qwen = any(name.endswith("layers.0.self_attn.q_norm.weight") for name in open_weights(path))
    sizes = None if is_qwen else RELEASED_MISTRAL
    return load_text_model(path, device, dtype, sizes, (_QWEN_LAYERS if is_qwen else _MISTRAL_LAYERS)[-1])
