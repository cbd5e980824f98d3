"""Files with the real names and shapes of released models, and holes in place of their numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

WIDTHS = {"F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1}


def write_model(
    path: Path,
    shapes: Mapping[str, Sequence[int]],
    metadata: Mapping[str, str] | None = None,
    dtype: str = "BF16",
    values: Mapping[str, bytes] | None = None,
) -> Path:
    """A whole safetensors file of its full size: the header, `values`, and holes for all the rest."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + math.prod(shape) * WIDTHS[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, data in (values or {}).items():
            file.seek(8 + len(text) + header[name]["data_offsets"][0])
            file.write(data)
        file.truncate(8 + len(text) + end)
    return path


CHROMA = {
    "img_in.weight": (3072, 64),
    "txt_in.weight": (3072, 4096),
    "distilled_guidance_layer.in_proj.weight": (5120, 64),
    "double_blocks.0.img_attn.qkv.weight": (9216, 3072),
    "single_blocks.0.linear1.weight": (21504, 3072),
    "final_layer.linear.weight": (64, 3072),
}
FLUX = {
    "img_in.weight": (3072, 64),
    "txt_in.weight": (3072, 4096),
    "vector_in.in_layer.weight": (3072, 768),
    "double_blocks.0.img_attn.qkv.weight": (9216, 3072),
    "double_blocks.0.img_mod.lin.weight": (18432, 3072),
}
VAE_16 = {"encoder.conv_in.weight": (128, 3, 3, 3), "decoder.conv_in.weight": (512, 16, 3, 3)}
VAE_4 = {
    "encoder.conv_in.weight": (128, 3, 3, 3),
    "decoder.conv_in.weight": (512, 4, 3, 3),
    "post_quant_conv.weight": (4, 4, 1, 1),
}
T5_XXL = {
    "shared.weight": (32128, 4096),
    "encoder.block.0.layer.0.SelfAttention.q.weight": (4096, 4096),
    "encoder.block.0.layer.1.DenseReluDense.wi_0.weight": (10240, 4096),
}
CLIP_L = {"text_model.encoder.layers.0.self_attn.q_proj.weight": (768, 768)}
SDXL_UNET = {
    "input_blocks.0.0.weight": (320, 4, 3, 3),
    "label_emb.0.0.weight": (1280, 2816),
    "input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight": (640, 2048),
}
SD15_UNET = {
    "input_blocks.0.0.weight": (320, 4, 3, 3),
    "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (320, 768),
}
KNOWN: dict[str, tuple[Mapping[str, Sequence[int]], str, str]] = {
    "chroma": (CHROMA, "network", "chroma"),
    "chroma, ComfyUI's names": (
        {f"model.diffusion_model.{name}": shape for name, shape in CHROMA.items()},
        "network",
        "chroma",
    ),
    "chroma, diffusers": (
        {
            "distilled_guidance_layer.in_proj.weight": (5120, 64),
            "x_embedder.weight": (3072, 64),
            "transformer_blocks.0.attn.add_k_proj.weight": (3072, 3072),
            "single_transformer_blocks.0.proj_mlp.weight": (12288, 3072),
        },
        "network",
        "chroma",
    ),
    "radiance": (
        {name: shape for name, shape in CHROMA.items() if not name.startswith(("img_in", "final_layer"))}
        | {
            "img_in_patch.weight": (3072, 3, 16, 16),
            "nerf_image_embedder.embedder.0.weight": (64, 67),
            "nerf_blocks.0.norm.scale": (64,),
        },
        "network",
        "chroma-radiance",
    ),
    "flux schnell": (FLUX, "network", "flux-schnell"),
    "flux dev": (FLUX | {"guidance_in.in_layer.weight": (3072, 256)}, "network", "flux-dev"),
    "flux dev, diffusers": (
        {
            "transformer_blocks.0.attn.add_k_proj.weight": (3072, 3072),
            "single_transformer_blocks.0.proj_mlp.weight": (12288, 3072),
            "time_text_embed.timestep_embedder.linear_1.weight": (3072, 256),
            "time_text_embed.guidance_embedder.linear_1.weight": (3072, 256),
        },
        "network",
        "flux-dev",
    ),
    "sdxl unet": (SDXL_UNET, "network", "sdxl"),
    "sdxl unet, diffusers": (
        {
            "down_blocks.0.resnets.0.conv1.weight": (320, 320, 3, 3),
            "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight": (640, 2048),
        },
        "network",
        "sdxl",
    ),
    "sdxl checkpoint": (
        {f"model.diffusion_model.{name}": shape for name, shape in SDXL_UNET.items()}
        | {f"first_stage_model.{name}": shape for name, shape in VAE_4.items()}
        | {f"conditioner.embedders.0.transformer.{name}": shape for name, shape in CLIP_L.items()},
        "checkpoint",
        "sdxl",
    ),
    "sd15": (SD15_UNET, "network", "sd15"),
    "sd3": ({"joint_blocks.0.x_block.attn.qkv.weight": (4608, 1536)}, "network", "sd3"),
    "lumina": (
        {
            "noise_refiner.0.attention.qkv.weight": (3840, 2304),
            "noise_refiner.0.adaLN_modulation.1.weight": (9216, 1024),
            "cap_embedder.1.weight": (2304, 2304),
        },
        "network",
        "lumina2",
    ),
    "qwen-image": (
        {
            "transformer_blocks.0.img_mod.1.weight": (18432, 3072),
            "transformer_blocks.0.attn.add_k_proj.weight": (3072, 3072),
            "transformer_blocks.0.txt_mlp.net.2.weight": (3072, 12288),
            "txt_norm.weight": (3584,),
            "txt_in.weight": (3072, 3584),
        },
        "network",
        "qwen-image",
    ),
    "z-image": (
        {"noise_refiner.0.attention.qkv.weight": (11520, 3840), "cap_pad_token": (1, 3840)},
        "network",
        "z-image",
    ),
    "z-image-omni": (
        {
            "noise_refiner.0.attention.to_q.weight": (3840, 3840),
            "cap_pad_token": (1, 3840),
            "siglip_embedder.1.weight": (3840, 1152),
        },
        "network",
        "z-image-omni",
    ),
    "zeta-chroma": (
        {
            "noise_refiner.0.attention.qkv.weight": (11520, 3840),
            "cap_pad_token": (1, 3840),
            "dec_net.cond_embed.weight": (3840, 3840),
        },
        "network",
        "zeta-chroma",
    ),
    "wan": (
        {
            "patch_embedding.weight": (5120, 16, 1, 2, 2),
            "blocks.0.self_attn.norm_q.weight": (5120,),
            "head.modulation": (1, 2, 5120),
        },
        "network",
        "wan",
    ),
    "wan ti2v": (
        {
            "patch_embedding.weight": (3072, 48, 1, 2, 2),
            "blocks.0.attn1.norm_q.weight": (3072,),
            "condition_embedder.time_proj.bias": (18432,),
        },
        "network",
        "wan-ti2v",
    ),
    "wan i2v": (
        {"patch_embedding.weight": (5120, 36, 1, 2, 2), "blocks.0.self_attn.norm_q.weight": (5120,)},
        "network",
        "wan-i2v",
    ),
    "vae, 16": (VAE_16, "vae", "vae-flux"),
    "vae, 4": (VAE_4, "vae", "vae-sd"),
    "t5 xxl": (T5_XXL, "text-encoder", "t5-xxl"),
    "t5 base": (
        {"shared.weight": (32128, 768), "encoder.block.0.layer.0.SelfAttention.q.weight": (768, 768)},
        "text-encoder",
        "t5",
    ),
    "umt5": (
        {"shared.weight": (256384, 4096), "encoder.block.0.layer.0.SelfAttention.q.weight": (4096, 4096)},
        "text-encoder",
        "umt5",
    ),
    "clip l": (CLIP_L, "text-encoder", "clip-l"),
    "clip g": (
        {"text_model.encoder.layers.0.self_attn.q_proj.weight": (1280, 1280)},
        "text-encoder",
        "clip-g",
    ),
    "controlnet": ({"controlnet_cond_embedding.conv_in.weight": (16, 3, 3, 3)}, "controlnet", "controlnet"),
    "embedding": ({"clip_l": (8, 768), "clip_g": (8, 1280)}, "embedding", "embedding"),
}
