"""Qwen-Image and Qwen-Image-Edit Plus: diffusers' transformer, Qwen2.5-VL's states of a chat about the image.

Conventions are those of diffusers' QwenImagePipeline. Noise level and velocity are ours. Padding of a text is
masked, so that a trimmed text gives the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowloom.errors import WeightsError
from flowloom.models.adapters.key_rules import network_names
from flowloom.models.adapters.names import COMFY_PREFIX, LoraNames
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
from flowloom.models.reference_layouts import Rows, by_layout
from flowloom.models.reference_sizes import with_pixels

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from flowloom.models.qwen_text import QwenConditioner
    from flowloom.models.weights import Weights

BLOCKS = "transformer_blocks"
_LAYERS = (
    *(f"attn.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0")),
    *(f"attn.{name}" for name in ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")),
    *(f"{side}_mlp.net.{layer}" for side in ("img", "txt") for layer in ("0.proj", "2")),
    *(f"{side}_mod.1" for side in ("img", "txt")),
)
_OUTER = (
    "img_in",
    "txt_in",
    "proj_out",
    "norm_out.linear",
    *(f"time_text_embed.timestep_embedder.linear_{i}" for i in (1, 2)),
)
NAMES = LoraNames(
    stacks=((BLOCKS, BLOCKS, {layer: (layer,) for layer in _LAYERS}),),
    outer={layer: (layer,) for layer in _OUTER},
    title="Qwen-Image",
    spec="qwen-image",
    implementation="https://github.com/QwenLM/Qwen-Image",
    readers=network_names(),
    comfy_prefix=COMFY_PREFIX,
    has_diffusers_layers=True,
)
VAE = ModelFile("vae_path", "Qwen-Image's VAE", "latents", "vae", frozenset({"vae-wan"}))
SHIFT_OF_TOKENS = (256, 0.5), (8192, 0.9)
"""Image tokens, each with its logarithmic shift of the schedule."""
LAST_LEVEL = 0.02
"""Noise level of the last step, see `schedule`; both are from the release's scheduler_config.json."""
_ZERO_CONDITION = "__index_timestep_zero__"
"""A tensor in ComfyUI's files of Edit 2511, whose reference images are at noise level 0."""


@dataclass(frozen=True)
class QwenImageSizes:
    """Arguments of QwenImageTransformer2DModel."""

    in_channels: int
    out_channels: int
    num_layers: int
    attention_head_dim: int
    num_attention_heads: int
    joint_attention_dim: int
    axes_dims_rope: tuple[int, ...]
    zero_cond_t: bool = False

    @property
    def hidden_size(self) -> int:
        """Width of a token inside the network."""
        return self.attention_head_dim * self.num_attention_heads

    @property
    def num_blocks(self) -> int:
        """Blocks of the transformer."""
        return self.num_layers

    @property
    def text_width(self) -> int:
        """Width of a caption's states."""
        return self.joint_attention_dim


class QwenImageFamily(DiffusersFamily):
    """See ModelFamily."""

    name, title = "qwen-image", "Qwen-Image"
    network_types = frozenset({"QwenImageTransformer2DModel"})
    has_causal_vae = True
    block_lists = (BLOCKS,)
    feed_forwards = ("img_mlp", "txt_mlp")
    architectures = {"qwen-image": Architecture("network", "Qwen-Image", "Qwen-Image")}
    signatures = (Signature("qwen-image", (f"{BLOCKS}.0.img_mod.", f"{BLOCKS}.0.txt_mlp.", "txt_norm.")),)
    pipelines = frozenset({"QwenImagePipeline", "QwenImageEditPipeline", "QwenImageEditPlusPipeline"})
    files = (
        ModelFile("path", "Qwen-Image's network", "network", "transformer", frozenset({"qwen-image"})),
        VAE,
        ModelFile("text_encoder_path", "Qwen2.5-VL 7B", "text", "text_encoder", frozenset({"qwen2.5"})),
        ModelFile("text_tokenizer_path", "the folder with Qwen2.5-VL's tokenizer", "text", "tokenizer"),
    )
    conditioning = {"states": "caption-states"}
    rotated = {BLOCKS: "trained_double_blocks"}
    names = NAMES
    last_layer = "proj_out"
    adapter_base = AdapterBase(
        "qwen-image",
        r"qwen[-_]?image",
        (f"{BLOCKS}_0_img_mlp_net",),
        ("img_mod_1", "txt_mod_1", "img_mlp_net"),
    )
    defaults = FamilyDefaults(
        Activations(kept=25, without_ffn=17, ffn_cost=0.33, block_cost=0.7),
        # musubi-tuner's docs/qwen_image.md: the sigmoid of a normal variable with a shift of 2.2, whose
        # logarithm is the mean.
        noise_level={"kind": "logit_normal", "mean": round(math.log(2.2), 4), "std": 1.0},
        # Its network module leaves out the modulations.
        lora_targets=("attn", "img_mlp", "txt_mlp"),
        always_trained=("txt_in", "img_in", "proj_out", "norm_out"),
        text_length=1024,
        # The last block's text is not used, so neither are its queries.
        idle_layers=tuple(
            f"{BLOCKS}.{{}}.{part}"
            for part in ("attn.add_q_proj", "attn.norm_added_q", "attn.to_add_out", "txt_mlp")
        ),
        keeps_norms=True,
        reference_size=with_pixels,
    )

    def sizes(self, path: Path) -> QwenImageSizes:
        sizes: Any = super().sizes(path)
        marked = _ZERO_CONDITION in self.open_weights(path).metadata
        return replace(sizes, zero_cond_t=True) if marked else sizes

    def read_sizes(
        self, shapes: Mapping[str, tuple[int, ...]], settings: Mapping[str, Any]
    ) -> QwenImageSizes:
        width, in_channels = shapes["img_in.weight"]
        head = shapes[f"{BLOCKS}.0.attn.norm_q.weight"][0]
        if "time_text_embed.addition_t_embedding.weight" in shapes:
            raise WeightsError("Qwen-Image-Layered, which makes several layers, cannot be trained here.")
        return QwenImageSizes(
            in_channels=in_channels,
            out_channels=shapes["proj_out.weight"][0] // 4,
            num_layers=count_blocks(shapes, BLOCKS),
            attention_head_dim=head,
            num_attention_heads=width // head,
            joint_attention_dim=shapes["txt_in.weight"][1],
            axes_dims_rope=tuple(
                settings.get("axes_dims_rope") or (head // 8, head * 7 // 16, head * 7 // 16)
            ),
            zero_cond_t=bool(settings.get("zero_cond_t")),
        )

    def in_diffusers_names(self, weights: Weights) -> Weights:
        if _ZERO_CONDITION not in weights:
            return weights
        kept = weights.gathered({name: (name,) for name in weights if name != _ZERO_CONDITION})
        kept.metadata[_ZERO_CONDITION] = "true"
        return kept

    def text_files(self, model: ModelSettings) -> tuple[list[Path], str]:
        from flowloom.models.qwen_text import is_first_edit

        files = [Path(model.text_encoder_path), Path(model.text_tokenizer_path)]
        return files, f"{model.max_text_tokens} tokens{', first edit' if is_first_edit(model) else ''}"

    def encoders(self, model: ModelSettings) -> dict[str, OpenEncoder]:
        from flowloom.models.qwen_text import open_qwen

        return super().encoders(model) | {"model.text_encoder_path": partial(open_qwen, model)}

    def tables(self, network: Any) -> dict[str, nn.Module]:
        table: Any = network.pos_embed.__class__
        return {
            "pos_embed": table(theta=10_000, axes_dim=list(network.config.axes_dims_rope), scale_rope=True)
        }

    def load_conditioner(
        self, model: ModelSettings, device: torch.device, dtype: torch.dtype
    ) -> QwenConditioner:
        from flowloom.models.qwen_text import load_qwen_conditioner

        return load_qwen_conditioner(model, device, dtype)

    def predict(
        self,
        network: Any,
        x: Tensor,
        noise_level: Tensor,
        texts: Sequence[Conditioning],
        grid: Grid,
        guidance: Tensor | None = None,  # noqa: ARG002 -- the network has none
    ) -> Tensor:
        def predict(rows: Rows, texts: Sequence[Conditioning], sizes: Sequence[Grid]) -> Tensor:
            return self._predict(network, x[rows], noise_level[rows], texts, [grid, *sizes])

        return by_layout(texts, predict)

    def _predict(
        self,
        network: Any,
        x: Tensor,
        noise_level: Tensor,
        texts: Sequence[Conditioning],
        grids: Sequence[Grid],
    ) -> Tensor:
        """`predict` of samples with the same layout: `grids` of the image and of its references."""
        import torch
        from torch.nn.utils.rnn import pad_sequence

        states = [text["states"].to(x.dtype) for text in texts]
        lengths = noise_level.new_tensor([len(each) for each in states])
        padded = pad_sequence(states, batch_first=True)
        is_token = (
            noise_level.new_tensor(range(padded.shape[1])) < lengths[:, None]
            if len({len(each) for each in states}) > 1
            else None
        )
        tokens = x
        if len(grids) > 1:
            references = torch.stack([text["references"].to(x.dtype) for text in texts])
            tokens = torch.cat((x, references), dim=1)
        return network(
            hidden_states=tokens,
            encoder_hidden_states=padded,
            encoder_hidden_states_mask=is_token,
            timestep=noise_level,
            img_shapes=[[(1, height // 2, width // 2) for height, width in grids]] * len(x),
            return_dict=False,
        )[0][:, : x.shape[1]]

    def schedule(self, network: Any, steps: int, num_tokens: int) -> list[float]:  # noqa: ARG002
        """Shifted by the number of tokens, then stretched to end at `LAST_LEVEL` before 0."""
        (few, low), (many, high) = SHIFT_OF_TOKENS
        shift = math.exp(low + (num_tokens - few) / (many - few) * (high - low))
        even = [1 - i / steps for i in range(steps)]
        levels = [shift * t / (shift * t + (1 - t)) for t in even]
        stretch = (1 - levels[-1]) / (1 - LAST_LEVEL)
        return [1 - (1 - level) / stretch for level in levels] + [0.0] if steps > 1 else [1.0, 0.0]

    def flops(self, sizes: QwenImageSizes, image_tokens: int, text_tokens: int) -> Flops:
        tokens, size = image_tokens + text_tokens, sizes.hidden_size
        # Every token crosses 12 D^2 weights in every block; modulations are computed once for each sample.
        modulations = size**2 * (12 * sizes.num_layers + 2)
        return Flops(
            linear=24 * size**2 * sizes.num_layers * tokens + 2 * modulations,
            attention=4 * tokens**2 * size * sizes.num_layers,
            ends=2 * size * (2 * sizes.in_channels * image_tokens + sizes.text_width * text_tokens),
        )


FAMILY = QwenImageFamily()
