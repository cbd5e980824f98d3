"""CLIP's text encoder and tokenizer: transformers' network from local files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from flowloom.errors import WeightsError
from flowloom.import_warnings import quiet_imports
from flowloom.models.header import read_small_json
from flowloom.models.weights import assign_weights, open_weights

CLIP_TOKENS = 77


def load_clip_tokenizer(folder: Path) -> Callable[[Sequence[str]], Tensor]:
    """CLIP's tokenizer in `folder`: captions to ids (B, 77).

    Raises:
        WeightsError: its files are missing or damaged.
    """
    with quiet_imports():
        from transformers import CLIPTokenizer
    try:
        tokenizer = cast("Any", CLIPTokenizer.from_pretrained(folder, local_files_only=True))
    except (OSError, ValueError, TypeError) as error:
        raise WeightsError(f"{folder}: not CLIP's tokenizer (vocab.json and merges.txt): {error}") from error

    def tokenize(captions: Sequence[str]) -> Tensor:
        padded = {"padding": "max_length", "max_length": CLIP_TOKENS, "truncation": True}
        return tokenizer(list(captions), return_tensors="pt", **padded).input_ids

    return tokenize


def load_clip(path: Path, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """CLIP's text encoder; sizes from config.json beside it, else CLIP L's by its shapes."""
    with quiet_imports():
        from transformers import CLIPTextConfig, CLIPTextModel
    weights = open_weights(path).below("text_encoders.clip_l.transformer.", "clip_l.transformer.")
    weights = weights.below("text_model.")
    unused = ("text_projection.weight", "logit_scale")
    names = {n: (n,) for n in weights if n not in unused and not n.endswith("position_ids")}
    weights = weights.gathered(names)
    settings = read_small_json((path if path.is_dir() else path.parent) / "config.json")
    try:
        config = CLIPTextConfig(**_clip_sizes(weights.shapes) | _kept(settings))
    except KeyError as error:
        raise WeightsError(f"{path}: not CLIP's text encoder: it has no {error.args[0]}.") from error
    with torch.device("meta"):
        model = CLIPTextModel(config)
    # Versions of transformers differ in the spelling.
    if next(iter(model.state_dict())).startswith("text_model."):
        weights = weights.gathered({f"text_model.{name}": (name,) for name in weights})
    positions = [name for name, buffer in model.named_buffers() if buffer.is_meta]
    for name in positions:
        module, _, leaf = name.rpartition(".")
        count = torch.arange(config.max_position_embeddings).unsqueeze(0).to(device)
        model.get_submodule(module).register_buffer(leaf, count, persistent=False)
    assign_weights(model, weights, device, dtype)
    return model.eval().requires_grad_(False)


def _clip_sizes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    vocabulary, width = shapes["embeddings.token_embedding.weight"]
    layers = {name.split(".")[2] for name in shapes if name.startswith("encoder.layers.")}
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": shapes["encoder.layers.0.mlp.fc1.weight"][0],
        "num_hidden_layers": len(layers),
        "num_attention_heads": max(1, width // 64),
        "max_position_embeddings": shapes["embeddings.position_embedding.weight"][0],
        "projection_dim": width,
        "eos_token_id": 2,  # openai's config: the end of the text is the largest id
    }


def _kept(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of config.json that shapes do not show; empty for another model's."""
    if settings.get("model_type") != "clip_text_model":
        return {}
    keys = (
        "num_attention_heads",
        "eos_token_id",
        "bos_token_id",
        "pad_token_id",
        "hidden_act",
        "layer_norm_eps",
    )
    return {key: settings[key] for key in keys if key in settings}
