"""Wan 2.1 and 2.2: diffusers' transformer, UMT5's states padded with zeros, the causal autoencoder.

Conventions are those of diffusers' WanPipeline: time is 1000 times the noise level, and the network predicts
noise - data. Cross-attention has no mask, so every text is padded with zero rows to one length.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowloom.models.adapters.names import LoraNames
from flowloom.models.adapters.wan_keys import WAN
from flowloom.models.architectures import AdapterBase, Architecture, Signature
from flowloom.models.diffusers_family import DiffusersFamily, count_blocks
from flowloom.models.family import (
    Activations,
    ClipDefaults,
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

    from flowloom.models.family import Codec, Conditioner
    from flowloom.models.weights import Assign, Weights

TEXT_LENGTH = 512
"""Rows of text that the network was trained with; rows without a token are zero."""
HEAD_WIDTH = 128
"""Of every released network; names and shapes do not show it."""
_BLOCK = {
    f"{theirs}.{inner}": (f"{ours}.{outer}",)
    for theirs, ours in (("self_attn", "attn1"), ("cross_attn", "attn2"))
    for inner, outer in (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("o", "to_out.0"))
} | {
    "cross_attn.k_img": ("attn2.add_k_proj",),
    "cross_attn.v_img": ("attn2.add_v_proj",),
    "ffn.0": ("ffn.net.0.proj",),
    "ffn.2": ("ffn.net.2",),
}
_EMBEDDER = "condition_embedder"
NAMES = LoraNames(
    stacks=(("blocks", "blocks", _BLOCK),),
    outer={
        "text_embedding.0": (f"{_EMBEDDER}.text_embedder.linear_1",),
        "text_embedding.2": (f"{_EMBEDDER}.text_embedder.linear_2",),
        "time_embedding.0": (f"{_EMBEDDER}.time_embedder.linear_1",),
        "time_embedding.2": (f"{_EMBEDDER}.time_embedder.linear_2",),
        "time_projection.1": (f"{_EMBEDDER}.time_proj",),
        "img_emb.proj.1": (f"{_EMBEDDER}.image_embedder.ff.net.0.proj",),
        "img_emb.proj.3": (f"{_EMBEDDER}.image_embedder.ff.net.2",),
        "head.head": ("proj_out",),
    },
    title="Wan",
    spec="wan",
    implementation="https://github.com/Wan-Video/Wan2.2",
    readers=WAN,
    has_diffusers_layers=True,
    joins_for_comfy=True,
)
# Names that differ and are no linear layers, Wan's and diffusers'.
_OTHERS = (
    ("self_attn.norm_", "attn1.norm_"),
    ("cross_attn.norm_k_img.", "attn2.norm_added_k."),
    ("cross_attn.norm_", "attn2.norm_"),
    (".norm3.", ".norm2."),
    ("head.modulation", "scale_shift_table"),
    (".modulation", ".scale_shift_table"),
    ("img_emb.proj.0.", f"{_EMBEDDER}.image_embedder.norm1."),
    ("img_emb.proj.4.", f"{_EMBEDDER}.image_embedder.norm2."),
    ("img_emb.emb_pos", f"{_EMBEDDER}.image_embedder.pos_embed"),
)


RELEASED = ("blocks.0.self_attn.norm_q.", "head.modulation")
IN_DIFFUSERS = ("blocks.0.attn1.norm_q.", f"{_EMBEDDER}.")
"""Names that identify a network of Wan."""
_HIGH_NOISE, _LOW_NOISE = re.compile(r"high[_-]?noise"), re.compile(r"low[_-]?noise|/transformer_2$")
BOUNDARY = 0.875
"""Noise level where Wan 2.2's networks for text to video change, from its configuration."""


@dataclass(frozen=True)
class WanSizes:
    """Arguments of WanTransformer3DModel."""

    num_attention_heads: int
    attention_head_dim: int
    in_channels: int
    """Width of a token of latents."""
    input_channels: int
    """Planes that the network takes; more than it makes, if an image is joined to the latents."""
    out_channels: int
    text_dim: int
    freq_dim: int
    ffn_dim: int
    num_layers: int
    rope_max_seq_len: int
    image_dim: int | None = None
    added_kv_proj_dim: int | None = None
    pos_embed_seq_len: int | None = None

    @property
    def hidden_size(self) -> int:
        """Width of a token inside the network."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def num_blocks(self) -> int:
        """Transformer blocks."""
        return self.num_layers

    @property
    def text_width(self) -> int:
        """Width of UMT5's states."""
        return self.text_dim


class WanFamily(DiffusersFamily):
    """See ModelFamily: text to video with latents of 16 channels."""

    name, title = "wan", "Wan"
    modalities = frozenset({"video"})
    network_types = frozenset({"WanTransformer3DModel"})
    # Modulations lose too many digits in bfloat16.
    in_float32 = re.compile(r"time_embedder\.|scale_shift_table$|\.norm2\.")
    block_lists = ("blocks",)
    feed_forwards = ("ffn",)
    architectures: Mapping[str, Architecture] = {"wan": Architecture("network", "Wan", "Wan 2.1 or 2.2")}
    signatures: tuple[Signature, ...] = (
        Signature("wan", RELEASED, ("patch_embedding.weight", 1, 16)),
        Signature("wan", IN_DIFFUSERS, ("patch_embedding.weight", 1, 16)),
    )
    pipelines = frozenset({"WanPipeline"})
    files = (
        ModelFile("path", "Wan's network", "network", "transformer", frozenset({"wan"})),
        ModelFile("vae_path", "Wan 2.1's VAE", "latents", "vae", frozenset({"vae-wan"})),
        ModelFile("t5_path", "UMT5 XXL's encoder", "text", "text_encoder", frozenset({"umt5", "t5"})),
        ModelFile("t5_config_path", "UMT5's config.json", "text", "text_encoder"),
        ModelFile("t5_tokenizer_path", "the folder with UMT5's tokenizer", "text", "tokenizer"),
    )
    conditioning = {"states": "caption-states"}
    rotated: Mapping[str, str] = {"blocks": "trained_double_blocks"}
    names = NAMES
    last_layer = "head.head"
    adapter_base = AdapterBase(
        "wan", r"wan", ("blocks_0_self_attn", "blocks_0_attn1"), ("self_attn_q", "attn1_to_q")
    )
    flow_shift = 3.0
    """Shift of the sampling schedule at 480p; 5 at 720p. diffusers' folders state theirs."""
    # Measured for a block of the 1.3B network in bfloat16, whose feed-forward part is the widest, 5.8 D.
    defaults = FamilyDefaults(
        Activations(kept=35, without_ffn=24, ffn_cost=0.5, block_cost=0.85),
        noise_level={"kind": "shifted", "shift": 3.0},
        text_length=TEXT_LENGTH,
        lora_targets=("self_attn", "cross_attn", "ffn"),
        always_trained=("patch_embedding", "text_embedding", "head"),
        clips=ClipDefaults(frames_per_latent=4, num_frames=81, fps=16.0),
    )

    def read_sizes(self, shapes: Mapping[str, tuple[int, ...]], settings: Mapping[str, Any]) -> WanSizes:
        width, input_channels, *patch = shapes["patch_embedding.weight"]
        token = shapes["proj_out.weight"][0]
        head = settings.get("attention_head_dim", min(HEAD_WIDTH, width))
        image = shapes.get(f"{_EMBEDDER}.image_embedder.norm1.weight", (None,))[0]
        added = shapes.get("blocks.0.attn2.add_k_proj.weight", (None, None))[1]
        positions = shapes.get(f"{_EMBEDDER}.image_embedder.pos_embed", (None, None))[1]
        return WanSizes(
            num_attention_heads=width // head,
            attention_head_dim=head,
            in_channels=token,
            input_channels=input_channels,
            out_channels=token // (patch[0] * patch[1] * patch[2]),
            text_dim=shapes[f"{_EMBEDDER}.text_embedder.linear_1.weight"][1],
            freq_dim=shapes[f"{_EMBEDDER}.time_embedder.linear_1.weight"][1],
            ffn_dim=shapes["blocks.0.ffn.net.0.proj.weight"][0],
            num_layers=count_blocks(shapes, "blocks"),
            rope_max_seq_len=settings.get("rope_max_seq_len", 1024),
            image_dim=image,
            added_kv_proj_dim=added,
            pos_embed_seq_len=positions,
        )

    def arguments(self, sizes: WanSizes) -> dict[str, Any]:
        named = dict(vars(sizes))
        return named | {"in_channels": named.pop("input_channels")}

    def in_diffusers_names(self, weights: Weights) -> Weights:
        if "head.head.weight" not in weights:
            return weights
        return weights.gathered({_diffusers_name(name): (name,) for name in weights})

    def load_network(
        self, path: Path, device: torch.device, dtype: torch.dtype, assign: Assign | None = None
    ) -> nn.Module:
        network: Any = super().load_network(path, device, dtype, assign)
        embedder = network.condition_embedder.time_embedder
        embedder.forward = _without_autocast(embedder.forward)
        network.flow_shift = _stated_shift(Path(path)) or self.flow_shift
        return network

    def tables(self, network: Any) -> Mapping[str, nn.Module]:
        rope, settings = network.rope, network.config
        made = type(rope)(rope.attention_head_dim, settings.patch_size, settings.rope_max_seq_len)
        return {"rope": made}

    def load_codec(self, model: ModelSettings, device: torch.device, dtype: torch.dtype) -> Codec:
        from flowloom.models.causal_autoencoder import load_causal_autoencoder

        return load_causal_autoencoder(Path(model.vae_path), device, dtype)

    def load_conditioner(self, model: ModelSettings, device: torch.device, dtype: torch.dtype) -> Conditioner:
        from flowloom.models.text_encoder import RealTokensOnly, load_t5

        return _Cleaned(RealTokensOnly(load_t5(model, device, dtype)))

    def encoders(self, model: ModelSettings) -> dict[str, OpenEncoder]:
        from flowloom.models.text_encoder import load_t5

        def open_t5(device: torch.device, dtype: torch.dtype) -> nn.Module:
            return load_t5(model, device, dtype).encoder

        return super().encoders(model) | {"model.t5_path": open_t5}

    def text_files(self, model: ModelSettings) -> tuple[list[Path], str]:
        from flowloom.models.text_encoder import t5_files

        length, bits = model.max_text_tokens, ", 8 bits" if model.t5_to_8bit else ""
        return t5_files(model), f"{length} tokens{bits}, unpadded, spaces joined"

    def text_length(self, num_tokens: int, max_length: int) -> int:  # noqa: ARG002 -- always padded
        return max(max_length, TEXT_LENGTH)

    def notes(self, model: ModelSettings) -> list[str]:
        if self.noise_levels(model) == (0.0, 1.0):
            return []
        return [
            f"{model.network_path.name} is one of Wan 2.2's two networks and is trained at its own noise "
            "levels. Previews use it at all levels, so they show less than both networks together."
        ]

    def noise_levels(self, model: ModelSettings) -> tuple[float, float]:
        path = model.network_path
        expert = _expert(path) if model.expert == "auto" else model.expert
        if expert is None:
            return 0.0, 1.0
        folder = path.parent if path.name == "transformer_2" else path
        stated = read_small_json(folder / "model_index.json").get("boundary_ratio")
        boundary = float(stated) if isinstance(stated, int | float) else BOUNDARY
        return (boundary, 1.0) if expert == "high_noise" else (0.0, boundary)

    def pack(self, latents: Tensor) -> Tensor:
        from einops import rearrange

        return rearrange(latents, "B C f (h dh) (w dw) -> B (f h w) (C dh dw)", dh=2, dw=2)

    def unpack(self, tokens: Tensor, grid: Grid) -> Tensor:
        from einops import rearrange

        f, h, w = grid
        return rearrange(
            tokens, "B (f h w) (C dh dw) -> B C f (h dh) (w dw)", f=f, h=h // 2, w=w // 2, dh=2, dw=2
        )

    def predict(
        self,
        network: Any,
        x: Tensor,
        noise_level: Tensor,
        texts: Sequence[Conditioning],
        grid: Grid,
        guidance: Tensor | None = None,  # noqa: ARG002 -- no such input
    ) -> Tensor:
        velocity = network(
            hidden_states=self.unpack(x, grid),
            timestep=noise_level * 1000,
            encoder_hidden_states=_padded(texts).to(x.dtype),
            return_dict=False,
        )[0]
        return self.pack(velocity)

    def schedule(self, network: Any, steps: int, num_tokens: int) -> list[float]:  # noqa: ARG002
        shift = network.flow_shift
        even = (1 - i / steps for i in range(steps + 1))
        return [shift * t / (1 + (shift - 1) * t) for t in even]

    def flops(self, sizes: Any, image_tokens: int, text_tokens: int) -> Flops:
        """Operations of one sample: self-attention over I tokens, cross-attention to T, N blocks of width D.

        A token of the clip crosses 6 D^2 + 2 D F weights in every block, a token of text 2 D^2.
        """
        width, num = sizes.hidden_size, sizes.num_blocks
        clip, text = 6 * width**2 + 2 * width * sizes.ffn_dim, 2 * width**2
        ends = (sizes.input_channels * self.patch**2 + sizes.in_channels) * image_tokens
        return Flops(
            linear=2 * num * (clip * image_tokens + text * text_tokens) + 2 * 6 * width**2,
            attention=4 * num * width * image_tokens * (image_tokens + text_tokens),
            ends=2 * width * (ends + (sizes.text_width + width) * text_tokens),
        )


class _Cleaned:
    """Captions without HTML entities and repeated spaces, as diffusers' pipeline encodes them."""

    def __init__(self, inner: Conditioner):
        self._inner = inner

    def count_tokens(self, captions: Sequence[str]) -> list[int]:
        return self._inner.count_tokens([_clean(caption) for caption in captions])

    def encode(
        self, captions: Sequence[str], max_length: int, *, is_trimmed: bool = True
    ) -> list[dict[str, Tensor]]:
        return self._inner.encode(
            [_clean(caption) for caption in captions], max_length, is_trimmed=is_trimmed
        )


def _clean(caption: str) -> str:
    return " ".join(html.unescape(html.unescape(caption)).split())


def _padded(texts: Sequence[Conditioning]) -> Tensor:
    """States (B, T, C) of all texts, with zero rows after each."""
    import torch

    states = [text["states"] for text in texts]
    length = max(TEXT_LENGTH, *(len(each) for each in states))
    padded = states[0].new_zeros(len(states), length, states[0].shape[1])
    for row, each in zip(padded, states, strict=True):
        row[: len(each)] = each
    return torch.as_tensor(padded)


def _diffusers_name(name: str) -> str:
    layer, _, leaf = name.rpartition(".")
    parts = NAMES.checkpoint_parts(layer)
    if parts:
        return f"{parts[0]}.{leaf}"
    for ours, theirs in _OTHERS:
        name = name.replace(ours, theirs)
    return name


def _without_autocast(forward: Any) -> Any:
    import torch

    def run(sample: Tensor) -> Tensor:
        if sample.is_meta:
            return forward(sample)
        with torch.autocast(sample.device.type, enabled=False):
            return forward(sample.float())

    return run


def _expert(path: Path) -> str | None:
    """Which of Wan 2.2's networks `path` is, by its name; None: it is not one of two."""
    name = "/".join(path.parts[-2:])
    if _LOW_NOISE.search(name):
        return "low_noise"
    return "high_noise" if _HIGH_NOISE.search(name) or (path / "transformer_2").is_dir() else None


def _stated_shift(path: Path) -> float | None:
    """The shift of the schedule in a diffusers folder."""
    folder = path.parent if path.name == "transformer_2" else path
    stated = read_small_json(folder / "scheduler" / "scheduler_config.json").get("flow_shift")
    return float(stated) if isinstance(stated, int | float) else None


FAMILY = WanFamily()
