"""Key rules of FLUX.1, the networks made from it, and FLUX.2; diffusers has their joined layers in parts."""

from __future__ import annotations

from dataclasses import replace

from flowloom.models.adapters.key_rules import COMFYUI, DIFFUSERS, KOHYA, KeyRules, Rows, same

_DOUBLE, _SINGLE = "double_blocks.{}.", "single_blocks.{}."
PARTS = {
    "transformer_blocks.{}.attn.to_q": Rows(f"{_DOUBLE}img_attn.qkv", 0, 3),
    "transformer_blocks.{}.attn.to_k": Rows(f"{_DOUBLE}img_attn.qkv", 1, 3),
    "transformer_blocks.{}.attn.to_v": Rows(f"{_DOUBLE}img_attn.qkv", 2, 3),
    "transformer_blocks.{}.attn.to_out.0": Rows(f"{_DOUBLE}img_attn.proj", 0, 1),
    "transformer_blocks.{}.ff.net.0.proj": Rows(f"{_DOUBLE}img_mlp.0", 0, 1),
    "transformer_blocks.{}.ff.net.2": Rows(f"{_DOUBLE}img_mlp.2", 0, 1),
    "transformer_blocks.{}.attn.add_q_proj": Rows(f"{_DOUBLE}txt_attn.qkv", 0, 3),
    "transformer_blocks.{}.attn.add_k_proj": Rows(f"{_DOUBLE}txt_attn.qkv", 1, 3),
    "transformer_blocks.{}.attn.add_v_proj": Rows(f"{_DOUBLE}txt_attn.qkv", 2, 3),
    "transformer_blocks.{}.attn.to_add_out": Rows(f"{_DOUBLE}txt_attn.proj", 0, 1),
    "transformer_blocks.{}.ff_context.net.0.proj": Rows(f"{_DOUBLE}txt_mlp.0", 0, 1),
    "transformer_blocks.{}.ff_context.net.2": Rows(f"{_DOUBLE}txt_mlp.2", 0, 1),
    "single_transformer_blocks.{}.attn.to_q": Rows(f"{_SINGLE}linear1", 0, 4),
    "single_transformer_blocks.{}.attn.to_k": Rows(f"{_SINGLE}linear1", 1, 4),
    "single_transformer_blocks.{}.attn.to_v": Rows(f"{_SINGLE}linear1", 2, 4),
    "single_transformer_blocks.{}.proj_mlp": Rows(f"{_SINGLE}linear1", 3, 4),
    "single_transformer_blocks.{}.proj_out": Rows(f"{_SINGLE}linear2", 0, 1),
    "x_embedder": Rows("img_in", 0, 1),
    "context_embedder": Rows("txt_in", 0, 1),
    "proj_out": Rows("final_layer.linear", 0, 1),
}
"""diffusers' layers, as rows of Black Forest Labs'."""
_MODULATIONS = {
    "transformer_blocks.{}.norm1.linear": Rows(f"{_DOUBLE}img_mod.lin", 0, 1),
    "transformer_blocks.{}.norm1_context.linear": Rows(f"{_DOUBLE}txt_mod.lin", 0, 1),
    "single_transformer_blocks.{}.norm.linear": Rows(f"{_SINGLE}modulation.lin", 0, 1),
    "time_text_embed.timestep_embedder.linear_1": Rows("time_in.in_layer", 0, 1),
    "time_text_embed.timestep_embedder.linear_2": Rows("time_in.out_layer", 0, 1),
    "time_text_embed.text_embedder.linear_1": Rows("vector_in.in_layer", 0, 1),
    "time_text_embed.text_embedder.linear_2": Rows("vector_in.out_layer", 0, 1),
    "time_text_embed.guidance_embedder.linear_1": Rows("guidance_in.in_layer", 0, 1),
    "time_text_embed.guidance_embedder.linear_2": Rows("guidance_in.out_layer", 0, 1),
}
_FLUX2_PARTS = {
    **{name: rows for name, rows in PARTS.items() if "attn." in name and not name.startswith("single")},
    "transformer_blocks.{}.ff.linear_in": Rows(f"{_DOUBLE}img_mlp.0", 0, 1),
    "transformer_blocks.{}.ff.linear_out": Rows(f"{_DOUBLE}img_mlp.2", 0, 1),
    "transformer_blocks.{}.ff_context.linear_in": Rows(f"{_DOUBLE}txt_mlp.0", 0, 1),
    "transformer_blocks.{}.ff_context.linear_out": Rows(f"{_DOUBLE}txt_mlp.2", 0, 1),
    "single_transformer_blocks.{}.attn.to_qkv_mlp_proj": Rows(f"{_SINGLE}linear1", 0, 1),
    "single_transformer_blocks.{}.attn.to_out": Rows(f"{_SINGLE}linear2", 0, 1),
    "x_embedder": Rows("img_in", 0, 1),
    "context_embedder": Rows("txt_in", 0, 1),
    "proj_out": Rows("final_layer.linear", 0, 1),
}
_FLUX2_OUTER = {
    "double_stream_modulation_img.linear": Rows("double_stream_modulation_img.lin", 0, 1),
    "double_stream_modulation_txt.linear": Rows("double_stream_modulation_txt.lin", 0, 1),
    "single_stream_modulation.linear": Rows("single_stream_modulation.lin", 0, 1),
    "time_guidance_embed.timestep_embedder.linear_1": Rows("time_in.in_layer", 0, 1),
    "time_guidance_embed.timestep_embedder.linear_2": Rows("time_in.out_layer", 0, 1),
    "time_guidance_embed.guidance_embedder.linear_1": Rows("guidance_in.in_layer", 0, 1),
    "time_guidance_embed.guidance_embedder.linear_2": Rows("guidance_in.out_layer", 0, 1),
}
"""ComfyUI knows these by Black Forest Labs' names only."""


def _joined(parts: dict[str, Rows]) -> dict[str, tuple[str, ...]]:
    joined: dict[str, dict[int, str]] = {}
    for part, rows in parts.items():
        joined.setdefault(rows.layer, {})[rows.part] = part
    return {layer: tuple(names[i] for i in sorted(names)) for layer, names in joined.items()}


CHROMA = {
    "comfy": KeyRules(COMFYUI, "diffusion_model."),
    "kohya": KeyRules(KOHYA, "lora_unet_", is_flat=True),
    "diffusers": KeyRules(DIFFUSERS, "transformer.", PARTS),
}
"""The network has Black Forest Labs' names, as ComfyUI and sd-scripts have."""
FLUX1 = {
    # ComfyUI has a table of these names too, with the rows that each is.
    "comfy": KeyRules(COMFYUI, "transformer.", same(*PARTS, *_MODULATIONS)),
    "kohya": KeyRules(KOHYA, "lora_unet_", _joined(PARTS | _MODULATIONS), is_flat=True),
    "diffusers": KeyRules(DIFFUSERS, "transformer."),
}
"""The network has diffusers' names."""
FLUX2 = {
    # By the names of ComfyUI's flux_to_diffusers, and by its own names of all layers.
    "comfy": KeyRules(
        COMFYUI,
        "",
        {f"transformer.{part}": (part,) for part in _FLUX2_PARTS}
        | {f"diffusion_model.{rows.layer}": (part,) for part, rows in _FLUX2_OUTER.items()},
    ),
    "kohya": KeyRules(
        replace(KOHYA, title="musubi-tuner (kohya)"),
        "lora_unet_",
        _joined(_FLUX2_PARTS | _FLUX2_OUTER),
        is_flat=True,
    ),
    "diffusers": KeyRules(DIFFUSERS, "transformer."),
}
"""The network has diffusers' names."""
