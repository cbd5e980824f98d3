"""Key rules of Krea 2: ComfyUI and sd-scripts have the released names, diffusers its own."""

from __future__ import annotations

from flowloom.models.adapters.key_rules import COMFYUI, DIFFUSERS, KOHYA, KeyRules

_LAYERS = {
    "blocks.{}.attn.wq": ("transformer_blocks.{}.attn.to_q",),
    "blocks.{}.attn.wk": ("transformer_blocks.{}.attn.to_k",),
    "blocks.{}.attn.wv": ("transformer_blocks.{}.attn.to_v",),
    "blocks.{}.attn.wo": ("transformer_blocks.{}.attn.to_out.0",),
    "blocks.{}.attn.gate": ("transformer_blocks.{}.attn.to_gate",),
    "blocks.{}.mlp.gate": ("transformer_blocks.{}.ff.gate",),
    "blocks.{}.mlp.up": ("transformer_blocks.{}.ff.up",),
    "blocks.{}.mlp.down": ("transformer_blocks.{}.ff.down",),
    "txtfusion.layerwise_blocks.{}.attn.wq": ("text_fusion.layerwise_blocks.{}.attn.to_q",),
    "txtfusion.layerwise_blocks.{}.attn.wk": ("text_fusion.layerwise_blocks.{}.attn.to_k",),
    "txtfusion.layerwise_blocks.{}.attn.wv": ("text_fusion.layerwise_blocks.{}.attn.to_v",),
    "txtfusion.layerwise_blocks.{}.attn.wo": ("text_fusion.layerwise_blocks.{}.attn.to_out.0",),
    "txtfusion.layerwise_blocks.{}.attn.gate": ("text_fusion.layerwise_blocks.{}.attn.to_gate",),
    "txtfusion.layerwise_blocks.{}.mlp.gate": ("text_fusion.layerwise_blocks.{}.ff.gate",),
    "txtfusion.layerwise_blocks.{}.mlp.up": ("text_fusion.layerwise_blocks.{}.ff.up",),
    "txtfusion.layerwise_blocks.{}.mlp.down": ("text_fusion.layerwise_blocks.{}.ff.down",),
    "txtfusion.refiner_blocks.{}.attn.wq": ("text_fusion.refiner_blocks.{}.attn.to_q",),
    "txtfusion.refiner_blocks.{}.attn.wk": ("text_fusion.refiner_blocks.{}.attn.to_k",),
    "txtfusion.refiner_blocks.{}.attn.wv": ("text_fusion.refiner_blocks.{}.attn.to_v",),
    "txtfusion.refiner_blocks.{}.attn.wo": ("text_fusion.refiner_blocks.{}.attn.to_out.0",),
    "txtfusion.refiner_blocks.{}.attn.gate": ("text_fusion.refiner_blocks.{}.attn.to_gate",),
    "txtfusion.refiner_blocks.{}.mlp.gate": ("text_fusion.refiner_blocks.{}.ff.gate",),
    "txtfusion.refiner_blocks.{}.mlp.up": ("text_fusion.refiner_blocks.{}.ff.up",),
    "txtfusion.refiner_blocks.{}.mlp.down": ("text_fusion.refiner_blocks.{}.ff.down",),
    "txtfusion.projector": ("text_fusion.projector",),
    "txtmlp.1": ("txt_in.linear_1",),
    "txtmlp.3": ("txt_in.linear_2",),
    "first": ("img_in",),
    "tmlp.0": ("time_embed.linear_1",),
    "tmlp.2": ("time_embed.linear_2",),
    "tproj.1": ("time_mod_proj",),
    "last.linear": ("final_layer.linear",),
}
KREA = {
    "comfy": KeyRules(COMFYUI, "diffusion_model.", _LAYERS),
    "kohya": KeyRules(KOHYA, "lora_unet_", _LAYERS, is_flat=True),
    "diffusers": KeyRules(DIFFUSERS, "transformer."),
}
