"""Lumina 2's pipeline at a tiny random size, and its network's tensors by the release's names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowloom.import_warnings import quiet_imports
from flowloom.models.families.lumina2 import FAMILY, INSTRUCTION
from flowloom.models.family import Conditioning, Grid
from flowloom.nn.patches import pack, unpack
from tests.fakes.tiny_pipelines import make_scaled_autoencoder
from tests.families.tiny import TinyImages

with quiet_imports():
    from diffusers import FlowMatchEulerDiscreteScheduler, Lumina2Pipeline, Lumina2Transformer2DModel
    from transformers import Gemma2Config, Gemma2Model, GemmaTokenizer

MAX_LENGTH = 40


def make_tokenizer() -> GemmaTokenizer:
    """A tokenizer of letters."""
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "\u2581", *(chr(i) for i in range(33, 127))]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = GemmaTokenizer(vocab=vocab, merges=[], padding_side="right", add_bos_token=True)
    # One token instead of two hundred: the pipeline's instruction has as many letters.
    tokenizer.add_special_tokens({"additional_special_tokens": [INSTRUCTION.strip()]})
    return tokenizer


def make_transformer() -> Lumina2Transformer2DModel:
    """Lumina 2's network with random weights, as wide as its latents; two heads share a key."""
    return Lumina2Transformer2DModel(
        sample_size=8,
        in_channels=16,
        hidden_size=96,
        num_layers=2,
        num_refiner_layers=1,
        num_attention_heads=4,
        num_kv_heads=2,
        multiple_of=16,
        axes_dim_rope=(8, 8, 8),
        axes_lens=(300, 32, 32),
        cap_feat_dim=32,
    )


class TinyLumina2(TinyImages):
    """See TinyPipeline."""

    family = FAMILY
    model: dict[str, Any] = {"t5_max_length": MAX_LENGTH}
    guidance = 1.0

    def make(self, t5_path: Path, folder: Path) -> Any:
        tokenizer = make_tokenizer()
        sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
        sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
        with torch.random.fork_rng():
            torch.manual_seed(6)
            parts: dict[str, Any] = {
                "vae": make_scaled_autoencoder().eval(),
                "text_encoder": Gemma2Model(Gemma2Config(**sizes, vocab_size=len(tokenizer))).eval(),
                "transformer": make_transformer().eval(),
            }
        parts |= {"scheduler": FlowMatchEulerDiscreteScheduler(shift=6.0), "tokenizer": tokenizer}
        return Lumina2Pipeline(**parts)

    def texts(self, pipeline: Any, captions: Sequence[str]) -> list[Conditioning]:
        states, mask, *_ = pipeline.encode_prompt(
            list(captions), do_classifier_free_guidance=False, max_sequence_length=MAX_LENGTH
        )
        return [{"states": each[own.bool()]} for each, own in zip(states, mask, strict=True)]

    def velocity(
        self, network: Any, x: Tensor, noise_level: Tensor, texts: Sequence[Conditioning], grid: Grid
    ) -> Tensor:
        states = torch.zeros(len(texts), MAX_LENGTH, 32)
        mask = torch.zeros(len(texts), MAX_LENGTH, dtype=torch.long)
        for i, text in enumerate(texts):
            states[i, : len(text["states"])], mask[i, : len(text["states"])] = text["states"], 1
        latents = unpack(x, grid[0], grid[1])
        return -pack(network(latents, 1 - noise_level, states, mask, return_dict=False)[0])

    def latents(
        self, pipeline: Any, prompt: str, tokens: Tensor, size: tuple[int, int], steps: int
    ) -> Tensor:
        return pack(super().latents(pipeline, prompt, tokens, size, steps))

    def noise(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        return unpack(tokens, size[1] // 8, size[0] // 8)

    def arguments(self) -> dict[str, Any]:
        return {"guidance_scale": self.guidance, "max_sequence_length": MAX_LENGTH}


_IN_RELEASE = {
    "time_caption_embed.caption_embedder": "cap_embedder",
    "time_caption_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_caption_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "norm_out.linear_1": "final_layer.adaLN_modulation.1",
    "norm_out.linear_2": "final_layer.linear",
    "attn.to_out.0": "attention.out",
    "attn.norm_q": "attention.q_norm",
    "attn.norm_k": "attention.k_norm",
    "ffn_norm": "ffn_norm",
    "norm1.linear": "adaLN_modulation.1",
    "norm1.norm": "attention_norm1",
    "norm1": "attention_norm1",
    "norm2": "attention_norm2",
    "feed_forward.linear_": "feed_forward.w",
}


def in_release(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a network in diffusers' names by those of the release, and one that is not used."""
    renamed: dict[str, Tensor] = {"norm_final.weight": torch.ones(8)}
    for name, tensor in state.items():
        theirs = next((part for part in _IN_RELEASE if part in name), "")
        new = name.replace(theirs, _IN_RELEASE[theirs]) if theirs else name
        if ".to_q." in name:
            tensor = torch.cat([state[name.replace("to_q", part)] for part in ("to_q", "to_k", "to_v")])
        if ".to_k." not in name and ".to_v." not in name:
            renamed[new.replace("attn.to_q", "attention.qkv")] = tensor.clone()
    return renamed
