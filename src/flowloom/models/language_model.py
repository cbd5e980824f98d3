"""A language model as text encoder: hidden states of some of its layers, from local files.

Qwen3, Qwen2.5-VL, Qwen3-VL, Gemma and Mistral encode captions for several families, which differ in layers,
templates and padding. Attention is causal and padding is on the right: no state depends on padding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from flowloom.errors import WeightsError
from flowloom.import_warnings import quiet_imports
from flowloom.models.header import read_small_json
from flowloom.models.weights import Weights, assign_weights, open_weights

_PREFIXES = ("language_model.model.", "model.language_model.", "language_model.", "model.")
_OTHER_PARTS = ("lm_head.", "visual.", "vision_tower.", "multi_modal_projector.", "spiece_model")


class LanguageModel:
    """Texts to hidden states; frozen."""

    def __init__(self, model: nn.Module, tokenizer: Any, device: torch.device):
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.device = device

    def rows(self, texts: Sequence[str], max_length: int | None = None) -> list[list[int]]:
        """Token ids of each text, with the special tokens that the tokenizer adds, cut to `max_length`."""
        rows = (self.tokenizer(text).input_ids for text in texts)
        return [row if max_length is None else row[:max_length] for row in rows]

    @torch.no_grad()
    def states(
        self, rows: Sequence[Sequence[int]], layers: Sequence[int], length: int | None = None
    ) -> Tensor:
        """Hidden states (B, L, N, C) of N layers; 0: the embedding, -1: the last one, after its norm.

        Args:
            rows: token ids of each text; padded on the right, and padding is masked.
            length: L; None: that of the longest row.
        """
        longest = length or max(map(len, rows))
        ids = torch.full((len(rows), longest), self.padding)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
        lengths = torch.tensor([len(row) for row in rows])
        mask = (torch.arange(longest) < lengths[:, None]).long().to(self.device)
        model: Any = self.model
        found = model(ids.to(self.device), mask, output_hidden_states=True, use_cache=False).hidden_states
        return torch.stack([found[layer] for layer in layers], dim=2)

    @property
    def padding(self) -> int:
        """The token id of padding."""
        own = self.tokenizer.pad_token_id
        return self.tokenizer.eos_token_id if own is None else own


class TrimmedStates:
    """The states of one layer for a caption's tokens without padding, as its conditioning.

    Args:
        template: makes the text that the model reads from a caption.
        layer: see `LanguageModel.states`.
    """

    def __init__(self, encoder: LanguageModel, template: Callable[[str], str], layer: int = -2):
        self.encoder = encoder
        self._template, self._layer = template, layer

    def count_tokens(self, captions: Sequence[str]) -> list[int]:
        """Tokens of each caption before it is cut, those of the template included."""
        return [len(row) for row in self.encoder.rows([self._template(caption) for caption in captions])]

    def encode(
        self, captions: Sequence[str], max_length: int, *, is_trimmed: bool = True
    ) -> list[dict[str, Tensor]]:
        """`states` (T_i, C) of each caption.

        Args:
            is_trimmed: False keeps the states of padding up to the longest caption.
        """
        if not captions:
            return []
        rows = self.encoder.rows([self._template(caption) for caption in captions], max_length)
        states = self.encoder.states(rows, [self._layer])[:, :, 0]
        lengths = [len(row) if is_trimmed else states.shape[1] for row in rows]
        return [{"states": own[:length]} for own, length in zip(states, lengths, strict=True)]


def load_language_model(
    path: Path,
    tokenizer_path: Path,
    device: torch.device,
    dtype: torch.dtype,
    sizes: Mapping[str, Any] | None = None,
) -> LanguageModel:
    """The language model in `path`, a folder or a file, with the tokenizer in the folder `tokenizer_path`.

    Args:
        sizes: config.json of the model for a file that has none beside it; by default Qwen3's by its shapes.

    Raises:
        WeightsError: a file is missing, damaged, or does not match the others.
    """
    return LanguageModel(
        load_text_model(path, device, dtype, sizes), load_text_tokenizer(tokenizer_path), device
    )


def load_text_tokenizer(folder: Path) -> Any:
    """The tokenizer in `folder`.

    Raises:
        WeightsError: its files are missing or damaged.
    """
    with quiet_imports():
        from transformers import AutoTokenizer
    folder = folder.parent if folder.is_file() else folder
    try:
        return cast("Any", AutoTokenizer.from_pretrained(folder, local_files_only=True))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise WeightsError(f"{folder}: not a tokenizer (tokenizer.json): {error}") from error


def load_text_model(
    path: Path,
    device: torch.device,
    dtype: torch.dtype,
    sizes: Mapping[str, Any] | None = None,
    depth: int | None = None,
) -> nn.Module:
    """The network of `load_language_model`, without vision and without the layer that makes words.

    Args:
        depth: number of layers that are loaded, without the norm at the end; None: all of them, and the norm.

    Raises:
        WeightsError: see `load_language_model`.
    """
    with quiet_imports():
        from transformers import AutoModel
    weights = _text_weights(open_weights(path))
    try:
        config = _text_config(path, weights, sizes)
    except KeyError as error:
        message = f"{path}: no config.json beside it, and no {error.args[0]} in it. Use the model's folder."
        raise WeightsError(message) from error
    if depth is not None:
        weights = _lowest(weights, depth)
        config.num_hidden_layers = depth
        config.layer_types = (getattr(config, "layer_types", None) or [])[:depth] or None
    with torch.device("meta"):
        model = cast("nn.Module", AutoModel.from_config(config))
    if depth is not None:
        model.set_submodule("norm", nn.Identity())
    fill_tables(model)
    assign_weights(model, weights, device, dtype)
    return model.to(device)


def fill_tables(model: Any) -> None:
    """Compute the buffers that no file has, such as rotary frequencies: the network was built empty."""
    stored = model.state_dict().keys()
    for place, module in model.named_modules():
        buffers = dict(module.named_buffers(place, recurse=False))
        for name in buffers.keys() - stored:
            setattr(module, name.rpartition(".")[2], torch.empty_like(buffers[name], device="cpu"))
        if buffers:
            model._init_weights(module)  # transformers' own values


def _text_weights(weights: Weights) -> Weights:
    kept = {name: (name,) for name in weights if not name.removeprefix("model.").startswith(_OTHER_PARTS)}
    return weights.gathered(kept).below(*_PREFIXES)


def _lowest(weights: Weights, depth: int) -> Weights:
    """The weights of the embedding and of the first `depth` layers."""
    kept = [name for name in weights if name.startswith(("embed_tokens.", "layers."))]
    numbers = {name: int(name.split(".")[1]) if name.startswith("layers.") else -1 for name in kept}
    return weights.gathered({name: (name,) for name in kept if numbers[name] < depth})


def _text_config(path: Path, weights: Weights, sizes: Mapping[str, Any] | None) -> Any:
    """The configuration of the part that reads text.

    Raises:
        KeyError: there is no config.json, and a tensor is missing.
    """
    with quiet_imports():
        from transformers import AutoConfig
    beside = read_small_json((path if path.is_dir() else path.parent) / "config.json")
    settings = dict(beside if "model_type" in beside else sizes or _qwen3_sizes(weights.shapes))
    config: Any = AutoConfig.for_model(settings.pop("model_type"), **settings)
    return config.get_text_config()


def _qwen3_sizes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Arguments of Qwen3Config, all of whose released models have the same base frequency and norms."""
    vocabulary, width = shapes["embed_tokens.weight"]
    head = shapes["layers.0.self_attn.q_norm.weight"][0]
    return {
        "model_type": "qwen3",
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": shapes["layers.0.mlp.gate_proj.weight"][0],
        "num_hidden_layers": len({name.split(".")[1] for name in shapes if name.startswith("layers.")}),
        "num_attention_heads": shapes["layers.0.self_attn.q_proj.weight"][0] // head,
        "num_key_value_heads": shapes["layers.0.self_attn.k_proj.weight"][0] // head,
        "head_dim": head,
        "max_position_embeddings": 40_960,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        "tie_word_embeddings": True,
    }
