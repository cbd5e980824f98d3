"""Chroma1-Radiance as a family: Chroma's transformer and texts, on pixels instead of latents."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from flowloom.models.adapters.key_rules import COMFYUI, KOHYA, KeyRules
from flowloom.models.adapters.names import LoraNames
from flowloom.models.architectures import AdapterBase, Architecture, Signature
from flowloom.models.families.chroma import (
    APPROXIMATOR,
    DOUBLE,
    SINGLE,
    T5_FILES,
    ChromaFamily,
)
from flowloom.models.family import (
    Activations,
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

    from flowloom.models.chroma import Loader
    from flowloom.models.radiance import Pixels

NAMES = LoraNames(
    stacks=(
        ("double_blocks", "transformer_blocks", DOUBLE),
        ("single_blocks", "single_transformer_blocks", SINGLE),
        ("nerf_blocks", "nerf_blocks", {"param_generator": ("param_generator",)}),
    ),
    outer={
        "txt_in": ("context_embedder",),
        "nerf_image_embedder.embedder.0": ("nerf_image_embedder.embedder.0",),
    },
    title="Chroma Radiance",
    spec="radiance",
    implementation="https://huggingface.co/lodestones/Chroma1-Radiance",
    # Neither diffusers nor sd-scripts has such a network; LyCORIS reads kohya's names onto any.
    readers={
        "comfy": KeyRules(COMFYUI, "diffusion_model."),
        "kohya": KeyRules(replace(KOHYA, title="LyCORIS"), "lora_unet_", is_flat=True),
    },
)


class RadianceFamily(ChromaFamily):
    """See ModelFamily; blocks, texts and the approximator are Chroma's."""

    name, title = "radiance", "Chroma Radiance"
    network_types = frozenset({"Radiance"})
    architectures = {
        "chroma-radiance": Architecture("network", "Chroma", "Chroma Radiance, which works on pixels"),
    }
    signatures = (Signature("chroma-radiance", (f"{APPROXIMATOR}.", "nerf_")),)
    pipelines = frozenset[str]()
    files = (
        ModelFile(
            "path", "Chroma Radiance's network", "network", "transformer", frozenset({"chroma-radiance"})
        ),
        *T5_FILES,
    )
    factor, patch = 1, 16
    names = NAMES
    last_layer = "nerf_final_layer_conv.conv"
    # Chroma's layers; those that diffusers names are of a Chroma.
    adapter_base = AdapterBase(
        "radiance", r"radiance", ("double_blocks", "single_blocks", "nerf_"), ("nerf_",)
    )
    # The transformer's are Chroma's. The ends keep 70 widths: the inputs of four NeRF blocks and of the last
    # layer, most in float32. The rest is for the patches that are computed at a time.
    defaults = FamilyDefaults(
        Activations(kept=21, without_ffn=15, ffn_cost=0.11, block_cost=0.65, ends=90),
        always_trained=("txt_in", "img_in_patch", "nerf_image_embedder", "nerf_final_layer_conv"),
        guidance_effect="Chroma was trained with 0, so image quality may suffer",
        never_trained={APPROXIMATOR: "that breaks Chroma"},
        has_x0_networks=True,
    )

    def loader(self) -> Loader:
        from flowloom.models.radiance import LOADER

        return LOADER

    def load_codec(self, model: ModelSettings, device: torch.device, dtype: torch.dtype) -> Pixels:  # noqa: ARG002
        from flowloom.models.radiance import Pixels

        return Pixels()

    def encoders(self, model: ModelSettings) -> dict[str, OpenEncoder]:
        return {key: encoder for key, encoder in super().encoders(model).items() if key != "model.vae_path"}

    def pack(self, latents: Tensor) -> Tensor:
        from flowloom.nn.patches import pack

        return pack(latents, self.patch)

    def unpack(self, tokens: Tensor, grid: Grid) -> Tensor:
        from flowloom.nn.patches import unpack

        height, width = grid
        return unpack(tokens, height, width, self.patch)

    def positions(self, grid: Grid, device: torch.device) -> Tensor:
        from flowloom.nn.patches import positions

        height, width = grid
        return positions(height // self.patch, width // self.patch, device)

    def flops(self, sizes: Any, image_tokens: int, text_tokens: int) -> Flops:
        """As for Chroma, and for each patch: the weights of its MLPs, their use on its pixels, and the ends.

        Those weights and the pixels both get gradients, like queries and keys.
        """
        trunk = super().flops(sizes, image_tokens, text_tokens)
        pixels, width = image_tokens * sizes.patch_size**2, sizes.nerf_hidden_size
        made = 3 * width**2 * sizes.nerf_mlp_ratio * sizes.nerf_depth
        features = 3 + sizes.nerf_max_freqs**2
        return trunk._replace(
            linear=trunk.linear + 2 * sizes.hidden_size * made * image_tokens,
            attention=trunk.attention + 2 * made * pixels,
            # Chroma's last layer is not here.
            ends=trunk.ends
            - 2 * sizes.hidden_size * sizes.in_channels * image_tokens
            + 2 * pixels * width * (features + 9 * 3),
        )


FAMILY = RadianceFamily()
