"""Z-Image and Z-Image Turbo: diffusers' transformer, the states of Qwen3, FLUX's autoencoder.

Conventions are those of diffusers' ZImagePipeline: time is 1 - noise level, and the network predicts data -
noise. It pads texts and images to multiples of 32 tokens with learned tokens, so only real tokens are given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowloom.models.adapters.key_rules import network_names
from flowloom.models.adapters.names import COMFY_PREFIX, LoraNames
from flowloom.models.architectures import AdapterBase, Architecture, Signature
from flowloom.models.diffusers_family import DiffusersFamily, count_blocks
from flowloom.models.families.chroma import VAE
from flowloom.models.family import (
    Activations,
    Conditioning,
    FamilyDefaults,
    Flops,
    Grid,
    ModelFile,
    ModelSettings,
    OpenEncoder,
)
from flowloom.models.header import read_small_json

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from flowloom.models.language_model import TrimmedStates
    from flowloom.models.weights import Assign, Weights

PADDED_TO = 32
"""Texts and images have a multiple of so many tokens inside the network."""
SHIFT, TURBO_SHIFT = 6.0, 3.0
"""Shift of the sampler's schedule, by scheduler_config.json of both releases."""
_BLOCK = {
    "attention.qkv": ("attention.to_q", "attention.to_k", "attention.to_v"),
    "attention.out": ("attention.to_out.0",),
} | {f"feed_forward.w{i}": (f"feed_forward.w{i}",) for i in (1, 2, 3)}
_MODULATED = _BLOCK | {"adaLN_modulation.0": ("adaLN_modulation.0",)}
NAMES = LoraNames(
    stacks=(
        ("layers", "layers", _MODULATED),
        ("noise_refiner", "noise_refiner", _MODULATED),
        ("context_refiner", "context_refiner", _BLOCK),
    ),
    outer={
        "x_embedder": ("all_x_embedder.2-1",),
        "final_layer.linear": ("all_final_layer.2-1.linear",),
        "final_layer.adaLN_modulation.1": ("all_final_layer.2-1.adaLN_modulation.1",),
    }
    | {name: (name,) for name in ("cap_embedder.1", "t_embedder.mlp.0", "t_embedder.mlp.2")},
    title="Z-Image",
    spec="z-image",
    implementation="https://github.com/Tongyi-MAI/Z-Image",
    # ComfyUI has a table of diffusers' names; musubi-tuner, kohya's trainer of it, has diffusers' layers.
    readers=network_names(),
    has_diffusers_layers=True,
    comfy_prefix=COMFY_PREFIX,
    joins_for_kohya=False,
)
_NORMS = {"attention.q_norm": "attention.norm_q", "attention.k_norm": "attention.norm_k"}
"""Norms in a block by the checkpoint's name and diffusers'."""


@dataclass(frozen=True)
class ZImageSizes:
    """Arguments of ZImageTransformer2DModel, and the width of a token."""

    in_channels: int
    dim: int
    n_layers: int
    n_refiner_layers: int
    n_heads: int
    n_kv_heads: int
    cap_feat_dim: int
    axes_dims: tuple[int, ...]
    axes_lens: tuple[int, ...]

    @property
    def hidden_size(self) -> int:
        """Width of a token inside the network."""
        return self.dim

    @property
    def num_blocks(self) -> int:
        """Blocks of all kinds."""
        return self.n_layers + 2 * self.n_refiner_layers

    @property
    def text_width(self) -> int:
        """Width of Qwen3's states."""
        return self.cap_feat_dim


class ZImageFamily(DiffusersFamily):
    """See ModelFamily."""

    name, title = "z-image", "Z-Image"
    network_types = frozenset({"ZImageTransformer2DModel"})
    block_lists = ("noise_refiner", "context_refiner", "layers")
    feed_forwards = ("feed_forward",)
    architectures = {
        "z-image": Architecture("network", "Z-Image", "Z-Image"),
        "z-image-omni": Architecture("network", "Z-Image", "Z-Image-Omni, which also reads images"),
        "zeta-chroma": Architecture("network", "Z-Image", "Zeta-Chroma, which works on pixels"),
    }
    signatures = (
        Signature("zeta-chroma", ("noise_refiner.0.", "cap_pad_token", "dec_net.")),
        Signature("z-image-omni", ("noise_refiner.0.", "cap_pad_token", "siglip_embedder.")),
        Signature("z-image", ("noise_refiner.0.", "cap_pad_token")),
    )
    pipelines = frozenset({"ZImagePipeline"})
    files = (
        ModelFile("path", "Z-Image's network", "network", "transformer", frozenset({"z-image"})),
        VAE,
        ModelFile("text_encoder_path", "Qwen3 4B", "text", "text_encoder", frozenset({"qwen3"})),
        ModelFile("text_tokenizer_path", "the folder with Qwen3's tokenizer", "text", "tokenizer"),
    )
    conditioning = {"states": "caption-states"}
    rotated = {"layers": "trained_single_blocks"}
    names = NAMES
    last_layer = "final_layer.linear"
    adapter_base = AdapterBase(
        "z-image",
        r"z-?_?image",
        ("_feed_forward_w1", "_feed_forward_w2", "_feed_forward_w3", "_attention_qkv", "_attention_to_"),
        ("_attention_to_q", "_attention_to_k", "_attention_to_v", "_attention_to_out", "_adaLN_modulation_0"),
    )
    # Counted in bfloat16, in which diffusers' norms keep float32.
    defaults = FamilyDefaults(
        Activations(kept=45, without_ffn=34, ffn_cost=0.44, block_cost=0.8),
        # The paper (arXiv:2511.22699, section 4.3): logit-normal, shifted. musubi-tuner's docs/zimage.md: by
        # 2, whose logarithm is the mean.
        noise_level={"kind": "logit_normal", "mean": 0.69},
        longest_text=1504,
        lora_targets=("attention.", "feed_forward."),
        always_trained=("x_embedder", "cap_embedder", "final_layer"),
    )

    def notes(self, model: ModelSettings) -> list[str]:
        path = model.network_path
        if _shift(path) != TURBO_SHIFT:
            return []
        return [
            f"{path.name} is Z-Image Turbo, which is distilled to sample in 8 steps. Training it undoes the "
            "distillation, so images of few steps get worse. Train Z-Image instead, whose LoRAs also work on "
            "Turbo; or merge a training adapter that takes the distillation out, train on the result, and "
            "use the LoRA with Turbo (docs/models.md)."
        ]

    def read_sizes(self, shapes: Mapping[str, tuple[int, ...]], settings: Mapping[str, Any]) -> ZImageSizes:
        width, in_channels = shapes["all_x_embedder.2-1.weight"]
        head = shapes["layers.0.attention.norm_q.weight"][0]
        return ZImageSizes(
            in_channels=in_channels,
            dim=width,
            n_layers=count_blocks(shapes, "layers"),
            n_refiner_layers=count_blocks(shapes, "noise_refiner"),
            n_heads=width // head,
            n_kv_heads=shapes["layers.0.attention.to_k.weight"][0] // head,
            cap_feat_dim=shapes["cap_embedder.1.weight"][1],
            axes_dims=tuple(settings.get("axes_dims") or (head // 4, head * 3 // 8, head * 3 // 8)),
            axes_lens=tuple(settings.get("axes_lens") or (1536, 512, 512)),
        )

    def arguments(self, sizes: ZImageSizes) -> dict[str, Any]:
        return vars(sizes) | {"in_channels": sizes.in_channels // self.patch**2}

    def in_diffusers_names(self, weights: Weights) -> Weights:
        if "x_embedder.weight" not in weights:
            return weights
        from flowloom.models.weight_rows import in_parts

        return in_parts(weights, NAMES, _renamed, unused=("norm_final.weight",))

    def load_network(
        self, path: Path, device: torch.device, dtype: torch.dtype, assign: Assign | None = None
    ) -> nn.Module:
        network: Any = super().load_network(path, device, dtype, assign)
        network.sampling_shift = _shift(path)
        return network

    def load_conditioner(
        self, model: ModelSettings, device: torch.device, dtype: torch.dtype
    ) -> TrimmedStates:
        from flowloom.models.language_model import TrimmedStates, load_language_model

        encoder = load_language_model(
            Path(model.text_encoder_path), Path(model.text_tokenizer_path), device, dtype
        )
        return TrimmedStates(encoder, partial(_chat, encoder.tokenizer))

    def encoders(self, model: ModelSettings) -> dict[str, OpenEncoder]:
        from flowloom.models.language_model import load_text_model

        path = Path(model.text_encoder_path)
        return {**super().encoders(model), "model.text_encoder_path": partial(load_text_model, path)}

    def text_files(self, model: ModelSettings) -> tuple[list[Path], str]:
        files = [Path(model.text_encoder_path), Path(model.text_tokenizer_path)]
        return files, f"{model.max_text_tokens} tokens, thinking, layer -2"

    def text_length(self, num_tokens: int, max_length: int) -> int:
        return _padded(min(num_tokens, max_length))

    def predict(
        self,
        network: Any,
        x: Tensor,
        noise_level: Tensor,
        texts: Sequence[Conditioning],
        grid: Grid,
        guidance: Tensor | None = None,  # noqa: ARG002 -- the network has no such input
    ) -> Tensor:
        import torch

        images = self.unpack(x, grid).unsqueeze(2).unbind()
        states = [text["states"].to(x.dtype) for text in texts]
        predicted = network(list(images), 1 - noise_level, states, return_dict=False)[0]
        return -self.pack(torch.stack(predicted).squeeze(2))

    def schedule(self, network: Any, steps: int, num_tokens: int) -> list[float]:  # noqa: ARG002
        from flowloom.flow_matching.samplers import shifted_schedule

        return shifted_schedule(steps, network.sampling_shift)

    def flops(self, sizes: Any, image_tokens: int, text_tokens: int) -> Flops:
        images, texts, width = _padded(image_tokens), _padded(text_tokens), sizes.dim
        # Every token crosses 12 D^2 weights in a block; modulations are computed once for each sample.
        refined = sizes.n_refiner_layers * (images + texts)
        narrow = min(width, 256)
        modulations = width * narrow * (4 * (sizes.n_layers + sizes.n_refiner_layers) + 1)
        return Flops(
            linear=24 * width**2 * (sizes.n_layers * (images + texts) + refined)
            + 2 * (modulations + 1024 * (256 + narrow)),
            attention=4
            * width
            * (sizes.n_layers * (images + texts) ** 2 + sizes.n_refiner_layers * (images**2 + texts**2)),
            ends=2 * width * (sizes.in_channels * (2 * images + texts) + sizes.text_width * texts),
        )


def _padded(num_tokens: int) -> int:
    return -(-num_tokens // PADDED_TO) * PADDED_TO


def _chat(tokenizer: Any, caption: str) -> str:
    """The caption as a user's message that an answer follows."""
    messages = [{"role": "user", "content": caption}]
    return tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, enable_thinking=True
    )


def _shift(path: Path) -> float:
    """The shift of the network in `path`: as its folder's scheduler states it, else by its name."""
    folder = path if (path / "scheduler").is_dir() else path.parent
    stated = read_small_json(folder / "scheduler" / "scheduler_config.json").get("shift")
    if isinstance(stated, int | float):
        return float(stated)
    name = path.name.lower().replace("-", "_").replace("deturbo", "de_turbo")
    return TURBO_SHIFT if "turbo" in name and "de_turbo" not in name else SHIFT


def _renamed(layer: str) -> str:
    """diffusers' name of a layer that an adapter cannot be put on, such as a norm."""
    return next((layer.replace(ours, own) for ours, own in _NORMS.items() if layer.endswith(ours)), layer)


FAMILY = ZImageFamily()
