"""Lumina Image 2: diffusers' transformer, the states of Gemma 2, FLUX's autoencoder.

Conventions are those of diffusers' Lumina2Pipeline: time is 1 - noise level, and the network predicts data -
noise. Padding of texts is masked, and a caption stands after a fixed instruction; an empty one stands alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowloom.models.adapters.key_rules import COMFYUI, DIFFUSERS, KOHYA, KeyRules
from flowloom.models.adapters.lumina_keys import LUMINA2
from flowloom.models.adapters.names import LoraNames
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

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from flowloom.models.language_model import TrimmedStates
    from flowloom.models.weights import Weights
    from flowloom.nn.recompute import Recompute

INSTRUCTION = (
    "You are an assistant designed to generate superior images with the superior degree of image-text "
    "alignment based on textual prompts or user prompts. <Prompt Start> "
)
"""The text before a caption, as in diffusers' pipeline."""
SHIFT = 6.0
"""Shift of the sampler's schedule, by scheduler_config.json of the release."""
THETA, PATCH = 10_000, 2
_BLOCK = {
    "attention.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "attention.out": ("attn.to_out.0",),
} | {f"feed_forward.w{i}": (f"feed_forward.linear_{i}",) for i in (1, 2, 3)}
_MODULATED = _BLOCK | {"adaLN_modulation.1": ("norm1.linear",)}
_EMBED = "time_caption_embed"
GEMMA = {"model_type": "gemma2"}
"""The sizes of Gemma 2 2B, transformers' defaults, for files that have no config.json beside them."""
NAMES = LoraNames(
    stacks=(
        ("layers", "layers", _MODULATED),
        ("noise_refiner", "noise_refiner", _MODULATED),
        ("context_refiner", "context_refiner", _BLOCK),
    ),
    outer={
        "x_embedder": ("x_embedder",),
        "cap_embedder.1": (f"{_EMBED}.caption_embedder.1",),
        "t_embedder.mlp.0": (f"{_EMBED}.timestep_embedder.linear_1",),
        "t_embedder.mlp.2": (f"{_EMBED}.timestep_embedder.linear_2",),
        "final_layer.adaLN_modulation.1": ("norm_out.linear_1",),
        "final_layer.linear": ("norm_out.linear_2",),
    },
    title="Lumina 2",
    spec="lumina-2",
    implementation="https://github.com/Alpha-VLLM/Lumina-Image-2.0",
    readers={
        "comfy": KeyRules(COMFYUI, "diffusion_model.", LUMINA2),
        "kohya": KeyRules(KOHYA, "lora_unet_", LUMINA2, is_flat=True),
        "diffusers": KeyRules(DIFFUSERS, "transformer."),
    },
    has_diffusers_layers=True,
    joins_for_comfy=True,
)
_NORMS = {
    "attention.q_norm": "attn.norm_q",
    "attention.k_norm": "attn.norm_k",
    "attention_norm1": "norm1.norm",
    "attention_norm2": "norm2",
}
"""Norms in a block by the checkpoint's name and diffusers'."""


@dataclass(frozen=True)
class Lumina2Sizes:
    """Arguments of Lumina2Transformer2DModel, and the width of a token."""

    in_channels: int
    hidden_size: int
    num_layers: int
    num_refiner_layers: int
    num_attention_heads: int
    num_kv_heads: int
    multiple_of: int
    """The width of the feed-forward part, which is a multiple of itself."""
    axes_dim_rope: tuple[int, ...]
    axes_lens: tuple[int, ...]
    cap_feat_dim: int

    @property
    def num_blocks(self) -> int:
        """Blocks of all kinds."""
        return self.num_layers + 2 * self.num_refiner_layers

    @property
    def text_width(self) -> int:
        """Width of Gemma's states."""
        return self.cap_feat_dim


class Lumina2Family(DiffusersFamily):
    """See ModelFamily."""

    name, title = "lumina2", "Lumina 2"
    network_types = frozenset({"Lumina2Transformer2DModel"})
    block_lists = ("context_refiner", "noise_refiner", "layers")
    feed_forwards = ("feed_forward",)
    architectures = {"lumina2": Architecture("network", "Lumina", "Lumina Image 2")}
    signatures = (
        Signature("lumina2", ("noise_refiner.0.attention.qkv.", "noise_refiner.0.adaLN_modulation.1.")),
        Signature("lumina2", ("noise_refiner.0.", "time_caption_embed.")),
    )
    pipelines = frozenset({"Lumina2Pipeline"})
    files = (
        ModelFile("path", "Lumina 2's network", "network", "transformer", frozenset({"lumina2"})),
        VAE,
        ModelFile("text_encoder_path", "Gemma 2 2B", "text", "text_encoder", frozenset({"gemma2"})),
        ModelFile("text_tokenizer_path", "the folder with Gemma's tokenizer", "text", "tokenizer"),
    )
    conditioning = {"states": "caption-states"}
    rotated = {"layers": "trained_single_blocks"}
    names = NAMES
    last_layer = "final_layer.linear"
    adapter_base = AdapterBase(
        "lumina2",
        r"lumina",
        ("_feed_forward_w1", "_feed_forward_w2", "_feed_forward_w3", "_attention_qkv"),
        ("_feed_forward_linear_", "_adaLN_modulation_1"),
    )
    defaults = FamilyDefaults(
        # Counted in bfloat16, in which diffusers' norms keep float32.
        Activations(kept=51, without_ffn=31, ffn_cost=0.55, block_cost=0.75),
        # sd-scripts' docs/lumina_train_network.md: nextdit_shift, which is e^1.15 at 1024 pixels.
        noise_level={"kind": "shifted", "shift": 3.16},
        text_length=256,
        longest_text=299,
        lora_targets=("attention.", "feed_forward."),
        always_trained=("x_embedder", "cap_embedder", "final_layer"),
    )

    def read_sizes(self, shapes: Mapping[str, tuple[int, ...]], settings: Mapping[str, Any]) -> Lumina2Sizes:
        width, in_channels = shapes["x_embedder.weight"]
        head = shapes["layers.0.attn.norm_q.weight"][0]
        queries, keys = (shapes[f"layers.0.attn.to_{part}.weight"][0] // head for part in "qk")
        return Lumina2Sizes(
            in_channels=in_channels,
            hidden_size=width,
            num_layers=count_blocks(shapes, "layers"),
            num_refiner_layers=count_blocks(shapes, "noise_refiner"),
            num_attention_heads=queries,
            num_kv_heads=keys,
            multiple_of=shapes["layers.0.feed_forward.linear_1.weight"][0],
            cap_feat_dim=shapes[f"{_EMBED}.caption_embedder.1.weight"][1],
            axes_dim_rope=tuple(settings.get("axes_dim_rope") or (head // 3,) * 3),
            axes_lens=tuple(settings.get("axes_lens") or (300, 512, 512)),
        )

    def arguments(self, sizes: Lumina2Sizes) -> dict[str, Any]:
        return vars(sizes) | {"in_channels": sizes.in_channels // self.patch**2}

    def tables(self, network: Any) -> Mapping[str, nn.Module]:
        from diffusers.models.transformers.transformer_lumina2 import Lumina2RotaryPosEmbed

        sizes = network.config.axes_dim_rope, network.config.axes_lens
        return {"rope_embedder": Lumina2RotaryPosEmbed(THETA, *sizes, patch_size=PATCH)}

    def recompute(self, network: Any, recompute: Recompute) -> None:
        from flowloom.models.lumina2_blocks import let_recompute

        super().recompute(network, recompute)
        for _, block in self.blocks(network):
            if all(block is not layer for layer in network.layers):
                let_recompute(block, recompute)

    def in_diffusers_names(self, weights: Weights) -> Weights:
        if "cap_embedder.1.weight" not in weights:
            return weights
        from flowloom.models.weight_rows import in_parts

        return in_parts(weights, NAMES, _renamed, unused=("norm_final.weight",))

    def load_conditioner(
        self, model: ModelSettings, device: torch.device, dtype: torch.dtype
    ) -> TrimmedStates:
        from flowloom.models.language_model import TrimmedStates, load_language_model

        path, tokenizer_path = Path(model.text_encoder_path), Path(model.text_tokenizer_path)
        encoder = load_language_model(path, tokenizer_path, device, dtype, GEMMA)
        return TrimmedStates(encoder, instructed)

    def encoders(self, model: ModelSettings) -> dict[str, OpenEncoder]:
        from flowloom.models.language_model import load_text_model

        path = Path(model.text_encoder_path)
        opened = partial(load_text_model, path, sizes=GEMMA)
        return {**super().encoders(model), "model.text_encoder_path": opened}

    def text_files(self, model: ModelSettings) -> tuple[list[Path], str]:
        files = [Path(model.text_encoder_path), Path(model.text_tokenizer_path)]
        return files, f"{model.max_text_tokens} tokens, {INSTRUCTION}, layer -2"

    def text_length(self, num_tokens: int, max_length: int) -> int:
        return min(num_tokens, max_length)

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

        states = torch.nn.utils.rnn.pad_sequence([text["states"] for text in texts], batch_first=True)
        lengths = torch.tensor([len(text["states"]) for text in texts], device=x.device)
        mask = torch.arange(states.shape[1], device=x.device) < lengths[:, None]
        predicted = network(
            hidden_states=self.unpack(x, grid),
            timestep=1 - noise_level,
            encoder_hidden_states=states.to(x.dtype),
            encoder_attention_mask=mask,
            return_dict=False,
        )[0]
        return -self.pack(predicted)

    def schedule(self, network: Any, steps: int, num_tokens: int) -> list[float]:  # noqa: ARG002
        from flowloom.flow_matching.samplers import shifted_schedule

        return shifted_schedule(steps, SHIFT)

    def flops(self, sizes: Any, image_tokens: int, text_tokens: int) -> Flops:
        width, ffn = sizes.hidden_size, sizes.multiple_of
        keys = width * sizes.num_kv_heads // sizes.num_attention_heads
        each = 2 * width * (2 * width + 2 * keys + 3 * ffn)
        tokens, refined = image_tokens + text_tokens, image_tokens**2 + text_tokens**2
        narrow = min(width, 1024)
        modulations = width * narrow * (4 * (sizes.num_layers + sizes.num_refiner_layers) + 1)
        return Flops(
            linear=each * tokens * (sizes.num_layers + sizes.num_refiner_layers)
            + 2 * (modulations + narrow * (256 + narrow)),
            attention=4 * width * (sizes.num_layers * tokens**2 + sizes.num_refiner_layers * refined),
            ends=2 * width * (sizes.in_channels * (image_tokens + tokens) + sizes.text_width * text_tokens),
        )


def instructed(caption: str) -> str:
    """The text that the encoder reads of a caption; the pipeline gives negative prompts no instruction."""
    return INSTRUCTION + caption if caption else caption


def _renamed(layer: str) -> str:
    """diffusers' name of a layer that an adapter cannot be put on, such as a norm."""
    kind = layer.split(".")[0]
    if kind == "cap_embedder":
        return f"{_EMBED}.caption_{layer.removeprefix('cap_')}"
    if kind == "context_refiner" and layer.endswith("attention_norm1"):
        return layer.replace("attention_norm1", "norm1")
    return next((layer.replace(ours, own) for ours, own in _NORMS.items() if layer.endswith(ours)), layer)


FAMILY = Lumina2Family()
