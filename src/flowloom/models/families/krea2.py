"""Krea 2: diffusers' transformer, the states of twelve layers of Qwen3-VL, Qwen-Image's autoencoder.

Conventions are those of diffusers' Krea2Pipeline. Noise level and velocity are ours. Text is at the origin
and its padding is masked, so that a trimmed text gives the same numbers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowloom.models.adapters.krea_keys import KREA
from flowloom.models.adapters.names import LoraNames
from flowloom.models.architectures import AdapterBase, Architecture, Signature
from flowloom.models.diffusers_family import DiffusersFamily, count_blocks
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
    from torch import Tensor

    from flowloom.models.krea2_text import Krea2Conditioner
    from flowloom.models.weights import Weights

BLOCKS, FUSION = "transformer_blocks", "text_fusion"
_STACKS = {
    "blocks": BLOCKS,
    "txtfusion.layerwise_blocks": f"{FUSION}.layerwise_blocks",
    "txtfusion.refiner_blocks": f"{FUSION}.refiner_blocks",
}
_LAYERS = {
    "attn.wq": "attn.to_q",
    "attn.wk": "attn.to_k",
    "attn.wv": "attn.to_v",
    "attn.wo": "attn.to_out.0",
    "attn.gate": "attn.to_gate",
    "mlp.gate": "ff.gate",
    "mlp.up": "ff.up",
    "mlp.down": "ff.down",
}
_OUTER = {
    "first": "img_in",
    "tmlp.0": "time_embed.linear_1",
    "tmlp.2": "time_embed.linear_2",
    "tproj.1": "time_mod_proj",
    "txtmlp.1": "txt_in.linear_1",
    "txtmlp.3": "txt_in.linear_2",
    "txtfusion.projector": f"{FUSION}.projector",
    "last.linear": "final_layer.linear",
}
"""Layers by the released name and diffusers'."""
_OTHERS = {
    "txtmlp.0.scale": "txt_in.norm.weight",
    "last.norm.scale": "final_layer.norm.weight",
    "last.modulation.lin": "final_layer.scale_shift_table",
}
_OTHERS_OF_BLOCK = {
    "attn.qknorm.qnorm.scale": "attn.norm_q.weight",
    "attn.qknorm.knorm.scale": "attn.norm_k.weight",
    "prenorm.scale": "norm1.weight",
    "postnorm.scale": "norm2.weight",
    "mod.lin": "scale_shift_table",
}
NAMES = LoraNames(
    stacks=tuple(
        (ours, theirs, {layer: (part,) for layer, part in _LAYERS.items()})
        for ours, theirs in _STACKS.items()
    ),
    outer={ours: (theirs,) for ours, theirs in _OUTER.items()},
    title="Krea 2",
    spec="krea-2",
    implementation="https://huggingface.co/krea/Krea-2-Raw",
    readers=KREA,
    has_diffusers_layers=True,
    joins_for_comfy=True,
)
SHIFT_OF_TOKENS = (256, 0.5), (6400, 1.15)
"""Image tokens, each with its logarithmic shift of the schedule, from diffusers' Krea2Pipeline."""


@dataclass(frozen=True)
class Krea2Sizes:
    """Arguments of Krea2Transformer2DModel."""

    in_channels: int
    num_layers: int
    attention_head_dim: int
    num_attention_heads: int
    num_key_value_heads: int
    intermediate_size: int
    timestep_embed_dim: int
    text_hidden_dim: int
    num_text_layers: int
    text_num_attention_heads: int
    text_num_key_value_heads: int
    text_intermediate_size: int
    num_layerwise_text_blocks: int
    num_refiner_text_blocks: int
    axes_dims_rope: tuple[int, ...]

    @property
    def hidden_size(self) -> int:
        """Width of a token inside the network."""
        return self.attention_head_dim * self.num_attention_heads

    @property
    def num_blocks(self) -> int:
        """Blocks of the transformer, without those that fuse the text's layers."""
        return self.num_layers

    @property
    def text_width(self) -> int:
        """Width of a caption's states: all layers of a token."""
        return self.text_hidden_dim * self.num_text_layers


class Krea2Family(DiffusersFamily):
    """See ModelFamily."""

    name, title = "krea2", "Krea 2"
    network_types = frozenset({"Krea2Transformer2DModel"})
    has_causal_vae = True
    block_lists = (BLOCKS,)
    feed_forwards = ("ff",)
    in_float32 = re.compile(r"norm(|1|2|_q|_k)\.weight$")
    architectures = {"krea2": Architecture("network", "Krea 2", "Krea 2")}
    signatures = (
        Signature("krea2", ("txtfusion.projector.", "blocks.0.attn.wq.")),
        Signature("krea2", (f"{FUSION}.projector.", f"{BLOCKS}.0.attn.to_gate.")),
    )
    pipelines = frozenset({"Krea2Pipeline"})
    files = (
        ModelFile("path", "Krea 2's network", "network", "transformer", frozenset({"krea2"})),
        ModelFile("vae_path", "Qwen-Image's VAE", "latents", "vae", frozenset({"vae-wan"})),
        ModelFile(
            "text_encoder_path", "Qwen3-VL 4B", "text", "text_encoder", frozenset({"qwen3-vl", "qwen3"})
        ),
        ModelFile("text_tokenizer_path", "the folder with Qwen3-VL's tokenizer", "text", "tokenizer"),
    )
    conditioning = {"states": "caption-states"}
    rotated = {"blocks": "trained_double_blocks"}
    names = NAMES
    last_layer = "last.linear"
    adapter_base = AdapterBase(
        "krea2", r"krea[-_ ]?2", ("blocks_0_attn_wq", "txtfusion"), ("attn_wq", "txtfusion")
    )
    defaults = FamilyDefaults(
        # Recomputed: a block's 11.5 D^2 weights but the last 2.7 D^2; 5.3 D^2 of its feed-forward part.
        Activations(kept=31, without_ffn=20, ffn_cost=0.46, block_cost=0.77),
        # diffusers' train_dreambooth_lora_krea2.py, by Krea: uniform noise levels, and these layers.
        noise_level={"kind": "uniform"},
        lora_targets=("attn.", "ff.up", "ff.down", *_OUTER.values()),
        always_trained=("first", "txtmlp", "last"),
    )

    def notes(self, model: ModelSettings) -> list[str]:
        if "turbo" not in model.network_path.name.lower():
            return []
        return [
            f"{model.network_path.name} is Krea 2 Turbo, which is distilled to sample in 8 steps. Training "
            "it undoes the distillation. Train Krea 2 Raw instead: its adapters work on Turbo."
        ]

    def read_sizes(self, shapes: Mapping[str, tuple[int, ...]], settings: Mapping[str, Any]) -> Krea2Sizes:
        width, in_channels = shapes["img_in.weight"]
        head = shapes[f"{BLOCKS}.0.attn.norm_q.weight"][0]
        fusion = f"{FUSION}.refiner_blocks.0"
        text_head = shapes[f"{fusion}.attn.norm_q.weight"][0]
        text_width = shapes[f"{fusion}.attn.to_q.weight"][1]
        axes = settings.get("axes_dims_rope") or (head // 4, head * 3 // 8, head * 3 // 8)
        return Krea2Sizes(
            in_channels=in_channels,
            num_layers=count_blocks(shapes, BLOCKS),
            attention_head_dim=head,
            num_attention_heads=width // head,
            num_key_value_heads=shapes[f"{BLOCKS}.0.attn.to_k.weight"][0] // head,
            intermediate_size=shapes[f"{BLOCKS}.0.ff.up.weight"][0],
            timestep_embed_dim=shapes["time_embed.linear_1.weight"][1],
            text_hidden_dim=text_width,
            num_text_layers=shapes[f"{FUSION}.projector.weight"][1],
            text_num_attention_heads=text_width // text_head,
            text_num_key_value_heads=shapes[f"{fusion}.attn.to_k.weight"][0] // text_head,
            text_intermediate_size=shapes[f"{fusion}.ff.up.weight"][0],
            num_layerwise_text_blocks=count_blocks(shapes, f"{FUSION}.layerwise_blocks"),
            num_refiner_text_blocks=count_blocks(shapes, f"{FUSION}.refiner_blocks"),
            axes_dims_rope=tuple(axes),
        )

    def in_diffusers_names(self, weights: Weights) -> Weights:
        if "first.weight" not in weights:
            return weights
        found = weights.gathered({_theirs(name): (name,) for name in weights})
        tables = {
            name: (6, shape[0] // 6)
            for name, shape in found.shapes.items()
            if name.startswith(BLOCKS) and name.endswith("scale_shift_table") and len(shape) == 1
        }
        return found.reshaped(tables)

    def load_conditioner(
        self, model: ModelSettings, device: torch.device, dtype: torch.dtype
    ) -> Krea2Conditioner:
        from flowloom.models.krea2_text import load_krea2_conditioner

        return load_krea2_conditioner(model, device, dtype)

    def encoders(self, model: ModelSettings) -> dict[str, OpenEncoder]:
        from flowloom.models.krea2_text import open_qwen3_vl

        return super().encoders(model) | {"model.text_encoder_path": partial(open_qwen3_vl, model)}

    def text_files(self, model: ModelSettings) -> tuple[list[Path], str]:
        files = [Path(model.text_encoder_path), Path(model.text_tokenizer_path)]
        return files, f"{model.max_text_tokens} tokens, tapped layers"

    def predict(
        self,
        network: Any,
        x: Tensor,
        noise_level: Tensor,
        texts: Sequence[Conditioning],
        grid: Grid,
        guidance: Tensor | None = None,  # noqa: ARG002 -- the network has none
    ) -> Tensor:
        import torch
        from torch.nn.utils.rnn import pad_sequence

        from flowloom.nn.patches import image_ids

        num_layers = network.config.num_text_layers
        states = pad_sequence([text["states"].to(x.dtype) for text in texts], batch_first=True)
        lengths = [len(text["states"]) for text in texts]
        is_token = None
        if min(lengths) < states.shape[1]:
            places = torch.arange(states.shape[1], device=x.device)
            is_token = places < torch.tensor(lengths, device=x.device)[:, None]
        height, width = grid
        ids = image_ids(height, width, x.device)
        return network(
            hidden_states=x,
            encoder_hidden_states=states.unflatten(2, (num_layers, -1)),
            timestep=noise_level,
            position_ids=torch.cat((ids.new_zeros(states.shape[1], 3), ids)),
            encoder_attention_mask=is_token,
            return_dict=False,
        )[0]

    def schedule(self, network: Any, steps: int, num_tokens: int) -> list[float]:  # noqa: ARG002
        (few, low), (many, high) = SHIFT_OF_TOKENS
        shift = math.exp(low + (num_tokens - few) / (many - few) * (high - low))
        even = [1 - i / steps for i in range(steps + 1)]
        return [shift * t / (shift * t + (1 - t)) for t in even]

    def flops(self, sizes: Krea2Sizes, image_tokens: int, text_tokens: int) -> Flops:
        """Operations of one sample; L layers of each of T text tokens cross the layer-wise blocks."""
        tokens, size = image_tokens + text_tokens, sizes.hidden_size
        keys = sizes.num_key_value_heads * sizes.attention_head_dim
        block = 3 * size**2 + 2 * size * keys + 3 * size * sizes.intermediate_size
        text, layers = sizes.text_hidden_dim, sizes.num_text_layers
        text_keys = sizes.text_num_key_value_heads * (text // sizes.text_num_attention_heads)
        fusion = 3 * text**2 + 2 * text * text_keys + 3 * text * sizes.text_intermediate_size
        passes = layers * sizes.num_layerwise_text_blocks + sizes.num_refiner_text_blocks
        fused = 2 * fusion * text_tokens * passes
        fused += 4 * text * text_tokens * layers**2 * sizes.num_layerwise_text_blocks
        fused += 4 * text * text_tokens**2 * sizes.num_refiner_text_blocks
        once = size * (sizes.timestep_embed_dim + 7 * size)
        return Flops(
            linear=2 * block * sizes.num_layers * tokens + 2 * once + fused,
            attention=4 * tokens**2 * size * sizes.num_layers,
            ends=2 * size * 2 * sizes.in_channels * image_tokens
            + 2 * text_tokens * (layers * text + text * size + size**2),
        )


def _theirs(name: str) -> str:
    """diffusers' name of a released tensor."""
    layer, _, leaf = name.rpartition(".")
    if name in _OTHERS:
        return _OTHERS[name]
    if layer in _OUTER:
        return f"{_OUTER[layer]}.{leaf}"
    for ours, theirs in _STACKS.items():
        if name.startswith(f"{ours}."):
            number, _, inner = name.removeprefix(f"{ours}.").partition(".")
            part, _, leaf = inner.rpartition(".")
            known = _OTHERS_OF_BLOCK.get(inner) or f"{_LAYERS.get(part, part)}.{leaf}"
            return f"{theirs}.{number}.{known}"
    return name


FAMILY = Krea2Family()
