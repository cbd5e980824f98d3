"""Key rules of Wan: ComfyUI and musubi-tuner have the released names, diffusers its own."""

from __future__ import annotations

from flowloom.models.adapters.key_rules import COMFYUI, DIFFUSERS, KOHYA, KeyRules

_LAYERS = {
    "blocks.{}.self_attn.q": ("blocks.{}.attn1.to_q",),
    "blocks.{}.self_attn.k": ("blocks.{}.attn1.to_k",),
    "blocks.{}.self_attn.v": ("blocks.{}.attn1.to_v",),
    "blocks.{}.self_attn.o": ("blocks.{}.attn1.to_out.0",),
    "blocks.{}.cross_attn.q": ("blocks.{}.attn2.to_q",),
    "blocks.{}.cross_attn.k": ("blocks.{}.attn2.to_k",),
    "blocks.{}.cross_attn.v": ("blocks.{}.attn2.to_v",),
    "blocks.{}.cross_attn.o": ("blocks.{}.attn2.to_out.0",),
    "blocks.{}.cross_attn.k_img": ("blocks.{}.attn2.add_k_proj",),
    "blocks.{}.cross_attn.v_img": ("blocks.{}.attn2.add_v_proj",),
    "blocks.{}.ffn.0": ("blocks.{}.ffn.net.0.proj",),
    "blocks.{}.ffn.2": ("blocks.{}.ffn.net.2",),
    "text_embedding.0": ("condition_embedder.text_embedder.linear_1",),
    "text_embedding.2": ("condition_embedder.text_embedder.linear_2",),
    "time_embedding.0": ("condition_embedder.time_embedder.linear_1",),
    "time_embedding.2": ("condition_embedder.time_embedder.linear_2",),
    "time_projection.1": ("condition_embedder.time_proj",),
    "head.head": ("proj_out",),
}
WAN = {
    "comfy": KeyRules(COMFYUI, "diffusion_model.", _LAYERS),
    "kohya": KeyRules(KOHYA, "lora_unet_", _LAYERS, is_flat=True),
    "diffusers": KeyRules(DIFFUSERS, "transformer."),
}
