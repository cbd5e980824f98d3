"""Z-Image's pipeline at a tiny random size, and its network's tensors by ComfyUI's names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor

from flowloom.import_warnings import quiet_imports
from flowloom.models.families.zimage import FAMILY
from flowloom.models.family import Conditioning, Grid
from flowloom.nn.patches import pack, unpack
from tests.fakes.tiny_pipelines import make_scaled_autoencoder
from tests.families.tiny import TinyImages

with quiet_imports():
    from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
    from transformers import Qwen2Tokenizer, Qwen3Config, Qwen3Model

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
_IN_COMFY = {
    "all_x_embedder.2-1.": "x_embedder.",
    "all_final_layer.2-1.": "final_layer.",
    ".attention.to_out.0.": ".attention.out.",
    ".attention.norm_q.": ".attention.q_norm.",
    ".attention.norm_k.": ".attention.k_norm.",
}


def make_tokenizer() -> Qwen2Tokenizer:
    """A tokenizer of bytes with Qwen's template."""
    pieces = [*sorted(ByteLevel.alphabet()), "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = Qwen2Tokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def make_transformer() -> ZImageTransformer2DModel:
    """Z-Image's network with random weights, as wide as its latents."""
    network = ZImageTransformer2DModel(
        in_channels=16,
        dim=64,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=4,
        n_kv_heads=4,
        cap_feat_dim=32,
        axes_dims=[4, 6, 6],
        axes_lens=[256, 32, 32],
    )
    for token in (network.x_pad_token, network.cap_pad_token):
        torch.nn.init.normal_(token)  # zero in a new network
    return network


class TinyZImage(TinyImages):
    """See TinyPipeline."""

    family = FAMILY
    model: dict[str, Any] = {}
    guidance = 1.0

    def make(self, t5_path: Path, folder: Path) -> Any:
        sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
        sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 300}
        with torch.random.fork_rng():
            torch.manual_seed(6)
            parts: dict[str, Any] = {
                "vae": make_scaled_autoencoder().eval(),
                "text_encoder": Qwen3Model(Qwen3Config(**sizes)).eval(),
                "transformer": make_transformer().eval(),
            }
        parts |= {"scheduler": FlowMatchEulerDiscreteScheduler(shift=6.0), "tokenizer": make_tokenizer()}
        return ZImagePipeline(**parts)

    def texts(self, pipeline: Any, captions: Sequence[str]) -> list[Conditioning]:
        states, _ = pipeline.encode_prompt(list(captions), do_classifier_free_guidance=False)
        return [{"states": each} for each in states]

    def velocity(
        self, network: Any, x: Tensor, noise_level: Tensor, texts: Sequence[Conditioning], grid: Grid
    ) -> Tensor:
        latents = unpack(x, grid[0], grid[1]).unsqueeze(2)
        states = [text["states"] for text in texts]
        output = network(list(latents), 1 - noise_level, states, return_dict=False)[0]
        return -pack(torch.stack(output).squeeze(2))

    def latents(
        self, pipeline: Any, prompt: str, tokens: Tensor, size: tuple[int, int], steps: int
    ) -> Tensor:
        return pack(super().latents(pipeline, prompt, tokens, size, steps))

    def noise(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        return unpack(tokens, size[1] // 8, size[0] // 8)

    def arguments(self) -> dict[str, Any]:
        return {"guidance_scale": self.guidance - 1}  # it is added to the prompt's own prediction


def in_comfy(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a network in diffusers' names by those of ComfyUI's files, and one that is not used."""
    renamed: dict[str, Tensor] = {"model.diffusion_model.norm_final.weight": torch.ones(64)}
    for name, tensor in state.items():
        new = f"model.diffusion_model.{name}"
        for theirs, ours in _IN_COMFY.items():
            new = new.replace(theirs, ours)
        if ".to_q." in name:
            tensor = torch.cat([state[name.replace("to_q", part)] for part in ("to_q", "to_k", "to_v")])
        if ".to_k." not in name and ".to_v." not in name:
            renamed[new.replace("to_q", "qkv")] = tensor.clone()
    return renamed
