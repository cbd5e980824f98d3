"""FLUX.1 (dev and schnell): diffusers' transformer, T5's padded states and CLIP's pooled vector.

Conventions are those of diffusers' FluxPipeline. Noise level and velocity are ours; T5 gets no mask, its
padding is attended to; text is at the origin; dev has a guidance vector, schnell none and an even schedule.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowloom.errors import WeightsError
from flowloom.models.adapters import flux_keys
from flowloom.models.adapters.names import LoraNames
from flowloom.models.architectures import AdapterBase, Architecture, Signature
from flowloom.models.diffusers_family import DiffusersFamily, count_blocks
from flowloom.models.families.chroma import (
    DOUBLE,
    LAYERS,
    ROTATED,
    SHARED_LAYERS,
    SINGLE,
    T5_KINDS,
    VAE,
)
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

    from flowloom.models.text_encoder import TextEncoder
    from flowloom.models.weights import Assign, Weights

TRAINING_GUIDANCE = 1.0
"""Guidance of dev during training, as in diffusers' and kohya's trainers."""
_EMBEDDERS = {
    "time_in": "timestep_embedder",
    "vector_in": "text_embedder",
    "guidance_in": "guidance_embedder",
}
NAMES = LoraNames(
    stacks=(
        (
            "double_blocks",
            "transformer_blocks",
            DOUBLE | {"img_mod.lin": ("norm1.linear",), "txt_mod.lin": ("norm1_context.linear",)},
        ),
        ("single_blocks", "single_transformer_blocks", SINGLE | {"modulation.lin": ("norm.linear",)}),
    ),
    outer={
        "img_in": ("x_embedder",),
        "txt_in": ("context_embedder",),
        "final_layer.linear": ("proj_out",),
    }
    | {
        f"{ours}.{side}_layer": (f"time_text_embed.{theirs}.linear_{i}",)
        for ours, theirs in _EMBEDDERS.items()
        for i, side in ((1, "in"), (2, "out"))
    },
    title="FLUX.1",
    spec="flux-1",
    implementation="https://github.com/black-forest-labs/flux",
    readers=flux_keys.FLUX1,
    has_diffusers_layers=True,
)
# Norms by diffusers' name and the checkpoint's.
_NORMS = {
    "attn.norm_q.weight": ("img_attn.norm.query_norm.scale", "norm.query_norm.scale"),
    "attn.norm_k.weight": ("img_attn.norm.key_norm.scale", "norm.key_norm.scale"),
    "attn.norm_added_q.weight": ("txt_attn.norm.query_norm.scale", ""),
    "attn.norm_added_k.weight": ("txt_attn.norm.key_norm.scale", ""),
}
_OWN_LAYERS = (
    "img_mod",
    "txt_mod",
    "modulation_lin",
    "vector_in",
    "guidance_in",
    "time_in",
    "time_text_embed",
    "norm1_linear",
    "lora_te1_text_model",
)
"""Layers of adapters that Chroma does not have, CLIP's included."""
_LAST_MODULATION = "final_layer.adaLN_modulation.1"


@dataclass(frozen=True)
class Flux1Sizes:
    """Arguments of FluxTransformer2DModel."""

    in_channels: int
    num_layers: int
    num_single_layers: int
    attention_head_dim: int
    num_attention_heads: int
    joint_attention_dim: int
    pooled_projection_dim: int
    guidance_embeds: bool
    axes_dims_rope: tuple[int, ...]

    @property
    def hidden_size(self) -> int:
        """Width of a token inside the network."""
        return self.attention_head_dim * self.num_attention_heads

    @property
    def num_blocks(self) -> int:
        """Blocks of both kinds."""
        return self.num_layers + self.num_single_layers

    @property
    def text_width(self) -> int:
        """Width of T5's states."""
        return self.joint_attention_dim


class Flux1Family(DiffusersFamily):
    """See ModelFamily."""

    name, title = "flux1", "FLUX.1"
    network_types = frozenset({"FluxTransformer2DModel"})
    block_lists = ("transformer_blocks", "single_transformer_blocks")
    architectures = {
        "flux-dev": Architecture("network", "FLUX.1", "FLUX.1 dev"),
        "flux-schnell": Architecture("network", "FLUX.1", "FLUX.1 schnell"),
    }
    signatures = (
        Signature("flux-dev", ("double_blocks.0.img_attn.qkv.", "vector_in.", "guidance_in.")),
        Signature("flux-schnell", ("double_blocks.0.img_attn.qkv.", "vector_in.")),
        Signature("flux-dev", ("single_transformer_blocks.", "time_text_embed.guidance_embedder.")),
        Signature("flux-schnell", ("single_transformer_blocks.", "time_text_embed.timestep_embedder.")),
    )
    pipelines = frozenset({"FluxPipeline"})
    files = (
        ModelFile(
            "path", "FLUX.1's network", "network", "transformer", frozenset({"flux-dev", "flux-schnell"})
        ),
        VAE,
        ModelFile("t5_path", "T5 XXL's encoder", "text", "text_encoder_2", T5_KINDS),
        ModelFile("t5_config_path", "T5's config.json", "text", "text_encoder_2"),
        ModelFile("t5_tokenizer_path", "the folder with T5's tokenizer", "text", "tokenizer_2"),
        ModelFile("clip_path", "CLIP L's text encoder", "text", "text_encoder", frozenset({"clip-l"})),
        ModelFile("clip_tokenizer_path", "the folder with CLIP's tokenizer", "text", "tokenizer"),
    )
    conditioning = {"states": "caption-states", "pooled": "caption-pooled"}
    rotated = ROTATED
    names = NAMES
    last_layer = "final_layer.linear"
    adapter_base = AdapterBase("flux", r"flux(?![-_. ]?2)", LAYERS, _OWN_LAYERS, SHARED_LAYERS)
    defaults = FamilyDefaults(
        Activations(kept=23, without_ffn=14, ffn_cost=0.33, block_cost=0.75), guidance=3.5
    )

    def notes(self, model: ModelSettings) -> list[str]:
        try:
            sizes: Any = self.sizes(model.network_path)
        except (WeightsError, OSError):
            return []
        if sizes.guidance_embeds:
            return []
        return [
            f"{model.network_path.name} is FLUX.1 schnell, which is distilled to sample in 1 to 4 steps. "
            "Training it undoes the distillation, so images of few steps get worse. Train FLUX.1 dev instead "
            "if its license allows it."
        ]

    def read_sizes(self, shapes: Mapping[str, tuple[int, ...]], settings: Mapping[str, Any]) -> Flux1Sizes:
        return _sizes(shapes, settings)

    def in_diffusers_names(self, weights: Weights) -> Weights:
        return _in_diffusers_names(weights) if "img_in.weight" in weights else weights

    def load_network(
        self, path: Path, device: torch.device, dtype: torch.dtype, assign: Assign | None = None
    ) -> nn.Module:
        from flowloom.models.flux_attention import rotate_as_complex

        network = super().load_network(path, device, dtype, assign)
        rotate_as_complex(network)
        return network

    def let_recompute_ffn(self, block: Any) -> None:
        if hasattr(block, "proj_mlp"):
            from flowloom.models.flux1_blocks import let_recompute_single

            let_recompute_single(block)
        else:
            super().let_recompute_ffn(block)

    def load_conditioner(
        self, model: ModelSettings, device: torch.device, dtype: torch.dtype
    ) -> Flux1Conditioner:
        from flowloom.models.clip import load_clip, load_clip_tokenizer
        from flowloom.models.text_encoder import load_t5

        clip = load_clip(Path(model.clip_path), device, dtype)
        tokenize = load_clip_tokenizer(Path(model.clip_tokenizer_path))
        return Flux1Conditioner(load_t5(model, device, dtype), clip, tokenize, device)

    def encoders(self, model: ModelSettings) -> dict[str, OpenEncoder]:
        from flowloom.models.clip import load_clip
        from flowloom.models.text_encoder import open_t5

        return {
            **super().encoders(model),
            "model.t5_path": partial(open_t5, model),
            "model.clip_path": partial(load_clip, Path(model.clip_path)),
        }

    def text_files(self, model: ModelSettings) -> tuple[list[Path], str]:
        from flowloom.models.text_encoder import t5_files, t5_settings

        files, settings = t5_files(model), t5_settings(model)
        return [*files, Path(model.clip_path), Path(model.clip_tokenizer_path)], f"{settings}, padded, CLIP"

    def text_length(self, num_tokens: int, max_length: int) -> int:  # noqa: ARG002
        return max_length

    def predict(
        self,
        network: Any,
        x: Tensor,
        noise_level: Tensor,
        texts: Sequence[Conditioning],
        grid: Grid,
        guidance: Tensor | None = None,
    ) -> Tensor:
        import torch

        from flowloom.nn.patches import image_ids

        states, pooled = (
            torch.stack([text[name] for text in texts]).to(x.dtype) for name in ("states", "pooled")
        )
        if guidance is None:
            guidance = torch.full_like(noise_level, TRAINING_GUIDANCE)
        height, width = grid
        ids = image_ids(height, width, x.device)
        return network(
            hidden_states=x,
            encoder_hidden_states=states,
            pooled_projections=pooled,
            timestep=noise_level,
            img_ids=ids,
            txt_ids=ids.new_zeros(states.shape[1], 3),
            guidance=guidance if network.config.guidance_embeds else None,
            return_dict=False,
        )[0]

    def schedule(self, network: Any, steps: int, num_tokens: int) -> list[float]:
        if network.config.guidance_embeds:
            from flowloom.flow_matching.samplers import schedule

            return schedule(steps, num_tokens)
        return [1 - i / steps for i in range(steps + 1)]

    def flops(self, sizes: Any, image_tokens: int, text_tokens: int) -> Flops:
        tokens, size = image_tokens + text_tokens, sizes.hidden_size
        # Every token crosses 12 D^2 weights in every block; modulations are computed once for each sample.
        modulations = size**2 * (12 * sizes.num_layers + 3 * sizes.num_single_layers + 2)
        return Flops(
            linear=24 * size**2 * sizes.num_blocks * tokens + 2 * modulations,
            attention=4 * tokens**2 * size * sizes.num_blocks,
            ends=2 * size * (2 * sizes.in_channels * image_tokens + sizes.text_width * text_tokens),
        )


class Flux1Conditioner:
    """Captions to T5's states, padded to the full length, and CLIP's pooled vector."""

    def __init__(
        self,
        t5: TextEncoder,
        clip: nn.Module,
        tokenize: Callable[[Sequence[str]], Tensor],
        device: torch.device,
    ):
        self._t5, self._clip, self._tokenize, self._device = t5, clip, tokenize, device

    def count_tokens(self, captions: Sequence[str]) -> list[int]:
        """T5's tokens of each caption before it is cut, the end included."""
        return self._t5.count_tokens(captions)

    def encode(
        self,
        captions: Sequence[str],
        max_length: int,
        *,
        is_trimmed: bool = True,  # noqa: ARG002 -- padding is part of the text
    ) -> list[dict[str, Tensor]]:
        """`states` (max_length, C) and `pooled` (P,) of each caption."""
        import torch

        if not captions:
            return []
        with torch.no_grad():
            states = self._t5.encode_padded(captions, max_length)
            pooled = self._clip(self._tokenize(captions).to(self._device)).pooler_output
        return [{"states": own, "pooled": vector} for own, vector in zip(states, pooled, strict=True)]


def _sizes(shapes: Mapping[str, tuple[int, ...]], settings: Mapping[str, Any]) -> Flux1Sizes:
    width, in_channels = shapes["x_embedder.weight"]
    head = shapes["transformer_blocks.0.attn.norm_q.weight"][0]
    axes = settings.get("axes_dims_rope") or (head // 8, head * 7 // 16, head * 7 // 16)
    return Flux1Sizes(
        in_channels=in_channels,
        num_layers=count_blocks(shapes, "transformer_blocks"),
        num_single_layers=count_blocks(shapes, "single_transformer_blocks"),
        attention_head_dim=head,
        num_attention_heads=width // head,
        joint_attention_dim=shapes["context_embedder.weight"][1],
        pooled_projection_dim=shapes["time_text_embed.text_embedder.linear_1.weight"][1],
        guidance_embeds="time_text_embed.guidance_embedder.linear_1.weight" in shapes,
        axes_dims_rope=tuple(axes),
    )


def _in_diffusers_names(weights: Weights) -> Weights:
    """Black Forest Labs' names to diffusers': joined layers are cut, the last modulation's halves swapped."""
    from flowloom.models.weight_rows import cut

    width = weights.shapes["img_in.weight"][0]
    rows: dict[str, tuple[str, int, int]] = {}
    for name, shape in weights.shapes.items():
        for theirs, start, stop in _cuts(name, shape[0], width):
            rows[theirs] = (name, start, stop)
    swapped = {f"norm_out.linear.{leaf}" for leaf in ("weight", "bias")}
    return cut(weights, rows, swapped)


def _cuts(name: str, num_rows: int, width: int) -> list[tuple[str, int, int]]:
    layer, _, leaf = name.rpartition(".")
    if layer == _LAST_MODULATION:
        return [(f"norm_out.linear.{leaf}", 0, num_rows)]
    parts = NAMES.checkpoint_parts(layer)
    if parts:
        edges = [min(i * width, num_rows) for i in range(len(parts))] + [num_rows]
        return [(f"{part}.{leaf}", edges[i], edges[i + 1]) for i, part in enumerate(parts)]
    stack, _, rest = name.partition(".")
    number, _, inner = rest.partition(".")
    kinds = ("double_blocks", "single_blocks")
    for theirs, spelled in _NORMS.items() if stack in kinds else ():
        if inner == spelled[kinds.index(stack)]:
            kind = ("transformer_blocks", "single_transformer_blocks")[kinds.index(stack)]
            return [(f"{kind}.{number}.{theirs}", 0, num_rows)]
    return [(name, 0, num_rows)]


FAMILY = Flux1Family()
