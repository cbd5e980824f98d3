"""T5's and UMT5's encoder: transformers' network from local files, captions trimmed to visible states."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from flowloom.errors import WeightsError
from flowloom.import_warnings import quiet_imports
from flowloom.json_types import is_object
from flowloom.models.quantized import assign_quantized, linear_layers
from flowloom.models.scaled_linear import Float8Linear
from flowloom.models.tokenizer import EOS, PAD, Tokenize, load_tokenizer
from flowloom.models.weights import Weights, assign_weights, check_names, open_weights

if TYPE_CHECKING:
    from transformers import T5Config, UMT5Config

    from flowloom.models.family import ModelSettings

_PREFIXES = ("text_encoders.t5xxl.transformer.", "t5xxl.transformer.")
_OTHER_PARTS = ("decoder.", "lm_head.", "spiece_model")
# Wan's names of UMT5's layers, and transformers'.
_WANS_NAMES = (
    ("token_embedding.", "embed_tokens."),
    ("norm.", "final_layer_norm."),
    ("blocks.", "block."),
    (".norm1.", ".layer.0.layer_norm."),
    (".norm2.", ".layer.1.layer_norm."),
    (".attn.", ".layer.0.SelfAttention."),
    (".pos_embedding.embedding.", ".layer.0.SelfAttention.relative_attention_bias."),
    (".ffn.gate.0.", ".layer.1.DenseReluDense.wi_0."),
    (".ffn.fc1.", ".layer.1.DenseReluDense.wi_1."),
    (".ffn.fc2.", ".layer.1.DenseReluDense.wo."),
)


class TextEncoder:
    """Captions to encoder states, each equal to that of the caption alone: padding is never attended to."""

    def __init__(self, encoder: nn.Module, tokenize: Tokenize, device: torch.device):
        self.encoder = encoder.eval().requires_grad_(False)
        self.device = device
        self._tokenize = tokenize

    def count_tokens(self, captions: Sequence[str]) -> list[int]:
        """The number of tokens of each caption, the end of the text included, before truncation."""
        return [len(self._tokenize(caption)) + 1 for caption in captions]

    @torch.no_grad()
    def encode(self, captions: Sequence[str], max_length: int, *, is_trimmed: bool = True) -> list[Tensor]:
        """The states (T_i, C) of each caption: its tokens, end included, and one padding token if it fits.

        Chroma attends to just these. Captions are truncated to `max_length` tokens.

        Args:
            is_trimmed: False keeps the states of padding up to the longest caption, for FLOW's mask.
        """
        if not captions:
            return []
        rows = [[*self._tokenize(caption)[: max_length - 1], EOS] for caption in captions]
        seen = [min(len(row) + 1, max_length) for row in rows]
        ids = torch.full((len(rows), max(seen)), PAD)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
        lengths = torch.tensor([len(row) for row in rows])
        mask = torch.arange(ids.shape[1]) < lengths[:, None]
        states = self.encoder(ids.to(self.device), attention_mask=mask.to(self.device)).last_hidden_state
        return [states[i, :length] if is_trimmed else states[i] for i, length in enumerate(seen)]

    @torch.no_grad()
    def encode_padded(self, captions: Sequence[str], max_length: int) -> Tensor:
        """States (B, max_length, C) of captions padded to that length; padding is attended to."""
        ids = torch.full((len(captions), max_length), PAD)
        for i, caption in enumerate(captions):
            row = [*self._tokenize(caption)[: max_length - 1], EOS]
            ids[i, : len(row)] = torch.tensor(row)
        return self.encoder(ids.to(self.device)).last_hidden_state


class _T5Float8Linear(Float8Linear):
    weight = None  # pyright: ignore[reportAssignmentType] -- T5 casts its input to the dtype of a `weight`


class StatesOnly:
    """T5's states as a caption's conditioning."""

    def __init__(self, text_encoder: TextEncoder):
        self.text_encoder = text_encoder

    def count_tokens(self, captions: Sequence[str]) -> list[int]:
        """Tokens of each caption before it is cut, the end included."""
        return self.text_encoder.count_tokens(captions)

    def encode(
        self, captions: Sequence[str], max_length: int, *, is_trimmed: bool = True
    ) -> list[dict[str, Tensor]]:
        """`states` of each caption, see TextEncoder."""
        states = self.text_encoder.encode(captions, max_length, is_trimmed=is_trimmed)
        return [{"states": each} for each in states]


class RealTokensOnly(StatesOnly):
    """The states of a caption's tokens, the end included and padding left out."""

    def encode(
        self, captions: Sequence[str], max_length: int, *, is_trimmed: bool = True
    ) -> list[dict[str, Tensor]]:
        """`states` (T_i, C) of each caption."""
        counts = self.count_tokens(captions)
        texts = super().encode(captions, max_length, is_trimmed=is_trimmed)
        return [{"states": text["states"][:count]} for text, count in zip(texts, counts, strict=True)]


def t5_files(model: ModelSettings) -> list[Path]:
    """T5's weights, sizes and tokenizer; the last two are beside the first unless they are named."""
    t5 = Path(model.t5_path)
    config_path = Path(model.t5_config_path) if model.t5_config_path else t5 / "config.json"
    return [t5, config_path, Path(model.t5_tokenizer_path) if model.t5_tokenizer_path else t5]


def t5_settings(model: ModelSettings) -> str:
    """The settings that determine T5's states of a caption."""
    return f"{model.max_text_tokens} tokens{', 8 bits' if model.t5_to_8bit else ''}"


def open_t5(model: ModelSettings, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """T5's network alone."""
    return load_t5(model, device, dtype).encoder


def load_t5(model: ModelSettings, device: torch.device, dtype: torch.dtype) -> TextEncoder:
    """The T5 encoder that `model` names; without data on the meta device.

    Raises:
        WeightsError: see load_text_encoder.
    """
    return load_text_encoder(
        Path(model.t5_path),
        Path(model.t5_config_path),
        Path(model.t5_tokenizer_path),
        device,
        dtype,
        to_8bit=model.t5_to_8bit and device.type != "meta",
    )


def load_text_encoder(
    t5_path: Path,
    t5_config_path: Path,
    t5_tokenizer_path: Path,
    device: torch.device,
    dtype: torch.dtype,
    to_8bit: bool = False,
) -> TextEncoder:
    """The T5 or UMT5 encoder in `t5_path`, a file or a folder of shards, with sizes from `t5_config_path`.

    Args:
        t5_config_path: the model's config.json, or the folder that has it.
        t5_tokenizer_path: folder with spiece.model or tokenizer.json, or one of these.
        to_8bit: keep the linear layers in float8, in half the memory of bfloat16.

    Raises:
        WeightsError: a file is missing, damaged, or does not match the others.
    """
    tokenize, num_pieces = load_tokenizer(t5_tokenizer_path)
    config = _read_config(Path(t5_config_path))
    if num_pieces > config.vocab_size:
        raise WeightsError(
            f"{t5_tokenizer_path}: {num_pieces} pieces, but {t5_config_path} has a vocabulary of "
            f"{config.vocab_size}. Use the tokenizer that belongs to this T5."
        )
    with quiet_imports():
        from transformers import T5EncoderModel, UMT5EncoderModel
    kind = UMT5EncoderModel if config.model_type == "umt5" else T5EncoderModel
    with torch.device("meta"):
        encoder = kind(config).encoder  # pyright: ignore[reportArgumentType]
    weights = _encoder_weights(open_weights(t5_path))
    check_names(encoder, weights)
    if to_8bit:
        assign_quantized(encoder, weights, linear_layers(encoder), device, dtype, _T5Float8Linear)
    else:
        assign_weights(encoder, weights, device, dtype)
    return TextEncoder(encoder, tokenize, device)


def _encoder_weights(weights: Weights) -> Weights:
    weights = weights.below(*_PREFIXES)
    if "token_embedding.weight" in weights:
        return weights.gathered({_from_wans(name): (name,) for name in weights})
    names = {name.removeprefix("encoder."): (name,) for name in weights if not name.startswith(_OTHER_PARTS)}
    # The embedding has two names; files have either or both.
    shared = names.pop("shared.weight", None)
    return weights.gathered(names | ({"embed_tokens.weight": shared} if shared else {}))


def _from_wans(name: str) -> str:
    for theirs, ours in _WANS_NAMES:
        name = name.replace(theirs, ours) if theirs[0] == "." else re.sub(f"^{re.escape(theirs)}", ours, name)
    return name


def _read_config(path: Path) -> T5Config | UMT5Config:
    path = path / "config.json" if path.is_dir() else path
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path}: not readable as T5's config.json ({error}).") from error
    if not is_object(settings) or "d_model" not in settings:
        raise WeightsError(f"{path}: not a T5 configuration: it has no d_model.")
    with quiet_imports():
        from transformers import T5Config, UMT5Config
    return (UMT5Config if settings.get("model_type") == "umt5" else T5Config).from_dict(settings)
