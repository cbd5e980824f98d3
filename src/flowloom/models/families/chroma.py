"""Chroma as a family: our network, T5's states trimmed to what is attended to, the FLUX autoencoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowloom.models.adapters import flux_keys
from flowloom.models.adapters.names import LoraNames
from flowloom.models.architectures import AdapterBase, Architecture, Signature
from flowloom.models.family import (
    Activations,
    Codec,
    Conditioning,
    FamilyDefaults,
    Flops,
    Grid,
    ModelFile,
    ModelSettings,
    OpenEncoder,
)
from flowloom.models.header import SAFE, read_header

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from flowloom.models.chroma import Loader
    from flowloom.models.text_encoder import StatesOnly
    from flowloom.models.weights import Assign, Weights
    from flowloom.nn.chroma import ChromaParams
    from flowloom.nn.recompute import Recompute

APPROXIMATOR = "distilled_guidance_layer"
X0_FLAG = "__x0__"
"""Buffer without numbers in the files of networks that predict the image instead of the velocity."""
DOUBLE = {
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "img_attn.proj": ("attn.to_out.0",),
    "img_mlp.0": ("ff.net.0.proj",),
    "img_mlp.2": ("ff.net.2",),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "txt_attn.proj": ("attn.to_add_out",),
    "txt_mlp.0": ("ff_context.net.0.proj",),
    "txt_mlp.2": ("ff_context.net.2",),
}
SINGLE = {
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "linear2": ("proj_out",),
}
"""Layers of a double and of a single block, with diffusers' names in order of rows."""
NAMES = LoraNames(
    stacks=(
        ("double_blocks", "transformer_blocks", DOUBLE),
        ("single_blocks", "single_transformer_blocks", SINGLE),
        (
            f"{APPROXIMATOR}.layers",
            f"{APPROXIMATOR}.layers",
            {"in_layer": ("linear_1",), "out_layer": ("linear_2",)},
        ),
    ),
    outer={
        "img_in": ("x_embedder",),
        "txt_in": ("context_embedder",),
        "final_layer.linear": ("proj_out",),
        f"{APPROXIMATOR}.in_proj": (f"{APPROXIMATOR}.in_proj",),
        f"{APPROXIMATOR}.out_proj": (f"{APPROXIMATOR}.out_proj",),
    },
    title="Chroma",
    spec="chroma",
    implementation="https://huggingface.co/lodestones/Chroma",
    readers=flux_keys.CHROMA,
)
NETWORK = ModelFile("chroma_path", "Chroma's network", "network", "transformer", frozenset({"chroma"}))
VAE = ModelFile(
    "vae_path", "FLUX's VAE of 16 channels, ae.safetensors", "latents", "vae", frozenset({"vae-flux"})
)
LAYERS, SHARED_LAYERS = ("double_blocks", "single_blocks", "single_transformer_blocks"), ("attn_add_k_proj",)
"""Layers of adapters, see AdapterBase; SD 3 has the shared ones too."""
ROTATED = {"double_blocks": "trained_double_blocks", "single_blocks": "trained_single_blocks"}
T5_KINDS = frozenset({"t5-xxl", "t5"})
T5_FILES = (
    ModelFile("t5_path", "T5 XXL's encoder", "text", "text_encoder", T5_KINDS),
    ModelFile("t5_config_path", "T5's config.json", "text", "text_encoder"),
    ModelFile("t5_tokenizer_path", "the folder with T5's tokenizer", "text", "tokenizer"),
)


class ChromaFamily:
    """See ModelFamily."""

    name, title = "chroma", "Chroma"
    modalities = frozenset({"image"})
    network_types = frozenset({"Chroma"})
    architectures: Mapping[str, Architecture] = {
        "chroma": Architecture("network", "Chroma", "Chroma"),
    }
    signatures = (
        Signature("chroma", (f"{APPROXIMATOR}.", "img_in.")),
        Signature("chroma", (f"{APPROXIMATOR}.", "x_embedder.")),
    )
    pipelines = frozenset({"ChromaPipeline"})
    files = (NETWORK, VAE, *T5_FILES)
    conditioning = {"states": "caption-states"}
    factor, patch = 8, 2
    rotated = ROTATED
    names = NAMES
    last_layer = "final_layer.linear"
    adapter_base = AdapterBase(
        "chroma", r"chroma(?!1?[-_ ]radiance)", (*LAYERS, APPROXIMATOR), (APPROXIMATOR,), SHARED_LAYERS
    )
    # Recomputed: of a double block's 12 D^2 weights the first 4 D^2 of its MLP, of a single block's none.
    defaults = FamilyDefaults(
        Activations(kept=21, without_ffn=15, ffn_cost=0.11, block_cost=0.65),
        guidance_effect="Chroma was trained with 0, so image quality may suffer",
        never_trained={APPROXIMATOR: "that breaks Chroma"},
        has_x0_networks=True,
    )

    def notes(self, model: ModelSettings) -> list[str]:  # noqa: ARG002
        return []

    def predicts_x0(self, path: Path) -> bool:
        return path.suffix in SAFE and any(name.endswith(X0_FLAG) for name in read_header(path).tensors)

    def loader(self) -> Loader:
        """Opens the network's files."""
        from flowloom.models.chroma import LOADER

        return LOADER

    def sizes(self, path: Path) -> ChromaParams:
        return self.loader().read_params(path)

    def open_weights(self, path: Path) -> Weights:
        return self.loader().open(path)

    def load_network(
        self, path: Path, device: torch.device, dtype: torch.dtype, assign: Assign | None = None
    ) -> nn.Module:
        from flowloom.models.weights import assign_weights

        return self.loader().load(path, device, dtype, assign or assign_weights)

    def blocks(self, network: Any) -> list[tuple[str, nn.Module]]:
        return network.blocks()

    def recompute(self, network: Any, recompute: Recompute) -> None:
        network.recompute = recompute

    def load_codec(self, model: ModelSettings, device: torch.device, dtype: torch.dtype) -> Codec:
        from flowloom.models.autoencoder import load_autoencoder

        return load_autoencoder(Path(model.vae_path), device, dtype)

    def load_conditioner(self, model: ModelSettings, device: torch.device, dtype: torch.dtype) -> StatesOnly:
        from flowloom.models.text_encoder import StatesOnly, load_t5

        return StatesOnly(load_t5(model, device, dtype))

    def encoders(self, model: ModelSettings) -> dict[str, OpenEncoder]:
        from flowloom.models.autoencoder import load_autoencoder
        from flowloom.models.text_encoder import open_t5

        def open_codec(device: torch.device, dtype: torch.dtype) -> nn.Module:
            return load_autoencoder(Path(model.vae_path), device, dtype).model

        return {
            "model.vae_path": open_codec,
            "model.t5_path": partial(open_t5, model),
        }

    def text_files(self, model: ModelSettings) -> tuple[list[Path], str]:
        from flowloom.models.text_encoder import t5_files, t5_settings

        return t5_files(model), t5_settings(model)

    def text_length(self, num_tokens: int, max_length: int) -> int:
        return min(num_tokens, max_length)

    def pack(self, latents: Tensor) -> Tensor:
        from flowloom.nn.patches import pack

        return pack(latents)

    def unpack(self, tokens: Tensor, grid: Grid) -> Tensor:
        from flowloom.nn.patches import unpack

        return unpack(tokens, *grid)

    def predict(
        self,
        network: nn.Module,
        x: Tensor,
        noise_level: Tensor,
        texts: Sequence[Conditioning],
        grid: Grid,
        guidance: Tensor | None = None,
    ) -> Tensor:
        from flowloom.nn.varlen import predict

        states = [text["states"] for text in texts]
        return predict(network, x, noise_level, states, self.positions(grid, x.device), guidance)

    def positions(self, grid: Grid, device: torch.device) -> Tensor:
        """Positions of the image's tokens, as the network takes them."""
        from flowloom.nn.patches import image_ids

        height, width = grid
        return image_ids(height, width, device)

    def noise_levels(self, model: ModelSettings) -> tuple[float, float]:  # noqa: ARG002
        return 0.0, 1.0

    def schedule(self, network: nn.Module, steps: int, num_tokens: int) -> list[float]:  # noqa: ARG002
        from flowloom.flow_matching.samplers import schedule

        return schedule(steps, num_tokens)

    def flops(self, sizes: ChromaParams, image_tokens: int, text_tokens: int) -> Flops:
        """Operations of one sample: I image tokens, T text tokens, S = I + T, width D, N blocks, MLP ratio r.

        Every token crosses (4 + 2r) D^2 weights in every block (12 D^2 at r = 4); a multiplication with an
        addition counts as two. Recomputed activations do not count: MFU is about useful work.
        """
        tokens, size = image_tokens + text_tokens, sizes.hidden_size
        wide, layers = sizes.approximator_hidden_size, sizes.approximator_depth
        return Flops(
            linear=int(2 * (4 + 2 * sizes.mlp_ratio) * size**2 * sizes.num_blocks * tokens),
            attention=4 * tokens**2 * size * sizes.num_blocks,
            ends=2 * size * (2 * sizes.in_channels * image_tokens + sizes.context_in_dim * text_tokens),
            frozen=2
            * sizes.num_modulations
            * (sizes.approximator_in_dim * wide + 2 * layers * wide**2 + wide * size),
        )


FAMILY = ChromaFamily()
