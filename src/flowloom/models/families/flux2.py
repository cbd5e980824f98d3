"""FLUX.2 (klein and dev): diffusers' transformer, hidden layers of a language model, latents of 128 channels.

Conventions are those of diffusers' Flux2KleinPipeline and Flux2Pipeline. Noise level and velocity are ours.
Text is padded to its full length, and the network attends to the padding; the language model does not. klein
reads Qwen3 and has no guidance; dev reads Mistral 3 and has a guidance vector.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowloom.models.adapters.flux_keys import FLUX2
from flowloom.models.adapters.names import LoraNames
from flowloom.models.architectures import AdapterBase, Architecture, Signature
from flowloom.models.diffusers_family import DiffusersFamily, count_blocks
from flowloom.models.families.chroma import LAYERS, ROTATED, SHARED_LAYERS
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
from flowloom.models.reference_layouts import Rows, by_layout
from flowloom.models.reference_sizes import within_pixels

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from flowloom.models.autoencoder_flux2 import Flux2Autoencoder
    from flowloom.models.flux2_text import Flux2Conditioner
    from flowloom.models.weights import Assign, Weights

REFERENCE_STEP = 10
"""Distance in time between the positions of the image and of each reference image."""
TRAINING_GUIDANCE = 1.0
"""Guidance of dev during training: diffusers' examples/dreambooth/README_flux2.md."""
DOUBLE = {
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "img_attn.proj": ("attn.to_out.0",),
    "img_mlp.0": ("ff.linear_in",),
    "img_mlp.2": ("ff.linear_out",),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "txt_attn.proj": ("attn.to_add_out",),
    "txt_mlp.0": ("ff_context.linear_in",),
    "txt_mlp.2": ("ff_context.linear_out",),
}
SINGLE = {"linear1": ("attn.to_qkv_mlp_proj",), "linear2": ("attn.to_out",)}
"""Layers of a double and of a single block, with diffusers' names in order of rows."""
MODULATIONS = ("double_stream_modulation_img", "double_stream_modulation_txt", "single_stream_modulation")
"""Each makes the shifts, scales and gates of all blocks of its kind."""
_TIMES = {"time_in": "timestep_embedder", "guidance_in": "guidance_embedder"}
NAMES = LoraNames(
    stacks=(
        ("double_blocks", "transformer_blocks", DOUBLE),
        ("single_blocks", "single_transformer_blocks", SINGLE),
    ),
    outer={
        "img_in": ("x_embedder",),
        "txt_in": ("context_embedder",),
        "final_layer.linear": ("proj_out",),
    }
    | {f"{part}.lin": (f"{part}.linear",) for part in MODULATIONS}
    | {
        f"{ours}.{side}_layer": (f"time_guidance_embed.{theirs}.linear_{i}",)
        for ours, theirs in _TIMES.items()
        for i, side in ((1, "in"), (2, "out"))
    },
    title="FLUX.2",
    spec="flux-2",
    implementation="https://github.com/black-forest-labs/flux2",
    readers=FLUX2,
    has_diffusers_layers=True,
    only_own_in_comfy={f"{part}.lin" for part in MODULATIONS}
    | {f"{part}.{side}_layer" for part in _TIMES for side in ("in", "out")},
    kohya_module="networks.lora_flux_2",
)
# Norms by the checkpoint's name and diffusers'. Released files end in "scale", newer ones in "weight".
_NORMS = {
    "double_blocks": {
        "img_attn.norm.query_norm": "attn.norm_q",
        "img_attn.norm.key_norm": "attn.norm_k",
        "txt_attn.norm.query_norm": "attn.norm_added_q",
        "txt_attn.norm.key_norm": "attn.norm_added_k",
    },
    "single_blocks": {"norm.query_norm": "attn.norm_q", "norm.key_norm": "attn.norm_k"},
}
_STACKS = {"double_blocks": "transformer_blocks", "single_blocks": "single_transformer_blocks"}
_GUIDANCE = "time_guidance_embed.guidance_embedder."
_DISTILLED = re.compile(r"klein(?!.*base)")
_LAST_MODULATION = "final_layer.adaLN_modulation.1.weight"
_OWN_LAYERS = (*MODULATIONS, "to_qkv_mlp_proj", "ff_linear_in", "ff_context_linear_in", "time_guidance_embed")
"""Layers of adapters that FLUX.1 and Chroma do not have."""


@dataclass(frozen=True)
class Flux2Sizes:
    """Arguments of Flux2Transformer2DModel."""

    in_channels: int
    num_layers: int
    num_single_layers: int
    attention_head_dim: int
    num_attention_heads: int
    joint_attention_dim: int
    timestep_guidance_channels: int
    mlp_ratio: float
    axes_dims_rope: tuple[int, ...]
    rope_theta: int
    guidance_embeds: bool

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
        """Width of the text's states: three layers of the language model."""
        return self.joint_attention_dim


class Flux2Family(DiffusersFamily):
    """See ModelFamily."""

    name, title = "flux2", "FLUX.2"
    network_types = frozenset({"Flux2Transformer2DModel"})
    block_lists = ("transformer_blocks", "single_transformer_blocks")
    architectures = {
        "flux2-dev": Architecture("network", "FLUX.2", "FLUX.2 dev"),
        "flux2-klein": Architecture("network", "FLUX.2", "FLUX.2 klein"),
    }
    signatures = (
        Signature("flux2-dev", ("double_stream_modulation_img.lin.", "guidance_in.")),
        Signature("flux2-dev", ("double_stream_modulation_img.linear.", _GUIDANCE)),
        Signature("flux2-klein", ("double_stream_modulation_img.",)),
    )
    pipelines = frozenset({"Flux2KleinPipeline", "Flux2Pipeline"})
    files = (
        ModelFile(
            "path", "FLUX.2's network", "network", "transformer", frozenset({"flux2-dev", "flux2-klein"})
        ),
        ModelFile("vae_path", "FLUX.2's VAE of 32 channels", "latents", "vae", frozenset({"vae-flux2"})),
        ModelFile(
            "text_encoder_path",
            "FLUX.2's text encoder: Qwen3 4B or 8B for klein, Mistral 3 for dev",
            "text",
            "text_encoder",
            frozenset({"qwen3", "language-model"}),
        ),
        ModelFile("text_tokenizer_path", "the folder with the text encoder's tokenizer", "text", "tokenizer"),
    )
    conditioning = {"states": "caption-states"}
    factor, patch = 16, 1
    rotated = ROTATED
    names = NAMES
    last_layer = "final_layer.linear"
    adapter_base = AdapterBase("flux2", r"flux[-_. ]?2|klein", LAYERS, _OWN_LAYERS, SHARED_LAYERS)
    # Uniform noise levels: diffusers' train_dreambooth_lora_flux2_klein.py, weighting_scheme "none". 4.0 is
    # the guidance of dev in diffusers' Flux2Pipeline. Modulations are not in the targets of adapters: every
    # block shares them, so an adapter on one changes the whole network at once.
    defaults = FamilyDefaults(
        Activations(kept=32, without_ffn=21, ffn_cost=0.1, block_cost=0.75),
        noise_level={"kind": "uniform"},
        text_layers=3,
        reference_size=within_pixels,
        guidance=4.0,
    )

    def notes(self, model: ModelSettings) -> list[str]:
        path = model.network_path
        if not _is_distilled(path):
            return []
        return [
            f"{path.name} is distilled to sample in 4 steps. Training it undoes the distillation, so images "
            "of few steps get worse. Train the base model (klein base 4B or 9B): a LoRA of it also works on "
            "the distilled one."
        ]

    def read_sizes(self, shapes: Mapping[str, tuple[int, ...]], settings: Mapping[str, Any]) -> Flux2Sizes:
        width, in_channels = shapes["x_embedder.weight"]
        head = shapes["transformer_blocks.0.attn.norm_q.weight"][0]
        time_guidance = shapes["time_guidance_embed.timestep_embedder.linear_1.weight"][1]
        mlp = shapes["transformer_blocks.0.ff.linear_out.weight"][1]
        return Flux2Sizes(
            attention_head_dim=head,
            num_attention_heads=width // head,
            mlp_ratio=mlp / width,
            axes_dims_rope=tuple(settings.get("axes_dims_rope") or (head // 4,) * 4),
            rope_theta=settings.get("rope_theta", 2000),
            in_channels=in_channels,
            timestep_guidance_channels=time_guidance,
            joint_attention_dim=shapes["context_embedder.weight"][1],
            num_layers=count_blocks(shapes, "transformer_blocks"),
            num_single_layers=count_blocks(shapes, "single_transformer_blocks"),
            guidance_embeds=f"{_GUIDANCE}linear_1.weight" in shapes,
        )

    def in_diffusers_names(self, weights: Weights) -> Weights:
        from flowloom.models.weight_rows import cut

        if "img_in.weight" not in weights:
            return weights
        rows: dict[str, tuple[str, int, int]] = {}
        for name, shape in weights.shapes.items():
            for theirs, start, stop in _cuts(name, shape[0]):
                rows[theirs] = (name, start, stop)
        return cut(weights, rows, {"norm_out.linear.weight"})

    def encoders(self, model: ModelSettings) -> dict[str, OpenEncoder]:
        from flowloom.models.flux2_text import load_flux2_encoder

        path = Path(model.text_encoder_path)
        return super().encoders(model) | {"model.text_encoder_path": partial(load_flux2_encoder, path)}

    def text_files(self, model: ModelSettings) -> tuple[list[Path], str]:
        files = [Path(model.text_encoder_path), Path(model.text_tokenizer_path or model.text_encoder_path)]
        return files, f"{model.max_text_tokens} tokens, padded, three layers"

    def load_codec(self, model: ModelSettings, device: torch.device, dtype: torch.dtype) -> Flux2Autoencoder:
        from flowloom.models.autoencoder_flux2 import load_flux2_autoencoder

        return load_flux2_autoencoder(Path(model.vae_path), device, dtype)

    def load_network(
        self, path: Path, device: torch.device, dtype: torch.dtype, assign: Assign | None = None
    ) -> nn.Module:
        from flowloom.models.flux_attention import rotate_as_complex

        network = super().load_network(path, device, dtype, assign)
        rotate_as_complex(network)
        return network

    def load_conditioner(
        self, model: ModelSettings, device: torch.device, dtype: torch.dtype
    ) -> Flux2Conditioner:
        from flowloom.models.flux2_text import load_flux2_conditioner

        return load_flux2_conditioner(model, device, dtype)

    def text_length(self, num_tokens: int, max_length: int) -> int:  # noqa: ARG002
        return max_length

    def pack(self, latents: Tensor) -> Tensor:
        return latents.flatten(2).transpose(1, 2)

    def unpack(self, tokens: Tensor, grid: Grid) -> Tensor:
        batch, _, channels = tokens.shape
        return tokens.transpose(1, 2).reshape(batch, channels, *grid)

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

        if guidance is None:
            guidance = torch.full_like(noise_level, TRAINING_GUIDANCE)

        def predict(rows: Rows, texts: Sequence[Conditioning], sizes: Sequence[Grid]) -> Tensor:
            states = torch.stack([text["states"] for text in texts]).to(x.dtype)
            tokens = x[rows]
            if sizes:
                references = torch.stack([text["references"] for text in texts])
                tokens = torch.cat((tokens, references.to(x.dtype)), dim=1)
            image_ids, text_ids = _positions([grid, *sizes], states.shape[1], x.device)
            return network(
                hidden_states=tokens,
                encoder_hidden_states=states,
                timestep=noise_level[rows],
                img_ids=image_ids,
                txt_ids=text_ids,
                guidance=guidance[rows] if network.config.guidance_embeds else None,
                return_dict=False,
            )[0][:, : x.shape[1]]

        return by_layout(texts, predict)

    def schedule(self, network: Any, steps: int, num_tokens: int) -> list[float]:  # noqa: ARG002
        shift = math.exp(empirical_shift(num_tokens, steps))
        even = (1 - i / steps for i in range(steps + 1))
        return [shift * t / (shift * t + (1 - t)) for t in even]

    def flops(self, sizes: Any, image_tokens: int, text_tokens: int) -> Flops:
        tokens, size = image_tokens + text_tokens, sizes.hidden_size
        # Of (4 + 3r) D^2 weights in every block; modulations are computed once for each sample.
        weights = int((4 + 3 * sizes.mlp_ratio) * size**2)
        embedders = (1 + sizes.guidance_embeds) * (sizes.timestep_guidance_channels * size + size**2)
        return Flops(
            linear=2 * weights * sizes.num_blocks * tokens + 2 * (17 * size**2 + embedders),
            attention=4 * tokens**2 * size * sizes.num_blocks,
            ends=2 * size * (2 * sizes.in_channels * image_tokens + sizes.text_width * text_tokens),
        )


def empirical_shift(num_tokens: int, steps: int) -> float:
    """The shift mu of Black Forest Labs' schedule, which depends on the number of steps too.

    Linear in the tokens at 10 and at 200 steps, and between them linear in the steps; above 4300 tokens the
    line of 200 steps holds for all (black-forest-labs/flux2, src/flux2/sampling.py).
    """
    at_200 = 0.00016927 * num_tokens + 0.45666666
    if num_tokens > 4300:
        return at_200
    at_10 = 8.73809524e-05 * num_tokens + 1.89833333
    return at_200 + (at_200 - at_10) / 190 * (steps - 200)


def _positions(grids: Sequence[Grid], text_length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Of image tokens (time, row, column, 0) and text tokens (0, 0, 0, index).

    The image is at time 0, its reference images at 10, 20 and so on.
    """
    import torch

    images: list[Tensor] = []
    for number, (height, width) in enumerate(grids):
        image = torch.zeros(height, width, 4, device=device)
        image[..., 0] = REFERENCE_STEP * number
        image[..., 1] = torch.arange(height, device=device)[:, None]
        image[..., 2] = torch.arange(width, device=device)[None, :]
        images.append(image.flatten(0, 1))
    text = torch.zeros(text_length, 4, device=device)
    text[:, 3] = torch.arange(text_length, device=device)
    return torch.cat(images), text


def _is_distilled(path: Path) -> bool:
    """True for klein without "base": a folder states it, a file only shows it by its name."""
    stated = read_small_json(path / "model_index.json") if path.is_dir() else {}
    return bool(stated.get("is_distilled", _DISTILLED.search(path.name.lower())))


def _cuts(name: str, num_rows: int) -> list[tuple[str, int, int]]:
    """The tensors by diffusers' names that a tensor of a released file is cut into, each with its rows."""
    if name == _LAST_MODULATION:
        return [("norm_out.linear.weight", 0, num_rows)]
    layer, _, leaf = name.rpartition(".")
    parts = NAMES.checkpoint_parts(layer)
    if parts:
        edges = [i * num_rows // len(parts) for i in range(len(parts) + 1)]
        return [(f"{part}.{leaf}", edges[i], edges[i + 1]) for i, part in enumerate(parts)]
    stack, _, rest = layer.partition(".")
    number, _, inner = rest.partition(".")
    if inner in _NORMS.get(stack, {}):
        return [(f"{_STACKS[stack]}.{number}.{_NORMS[stack][inner]}.weight", 0, num_rows)]
    return [(name, 0, num_rows)]


FAMILY = Flux2Family()
