"""Key rules of Lumina 2, whose release joins the layers of attention that diffusers has in parts.

ComfyUI and sd-scripts have the release's network.
"""

from __future__ import annotations

_TIME_AND_TEXT = "time_caption_embed"


def _block(kind: str) -> dict[str, tuple[str, ...]]:
    at = f"{kind}.{{}}."
    return {
        f"{at}attention.qkv": (f"{at}attn.to_q", f"{at}attn.to_k", f"{at}attn.to_v"),
        f"{at}attention.out": (f"{at}attn.to_out.0",),
        f"{at}feed_forward.w1": (f"{at}feed_forward.linear_1",),
        f"{at}feed_forward.w2": (f"{at}feed_forward.linear_2",),
        f"{at}feed_forward.w3": (f"{at}feed_forward.linear_3",),
        f"{at}adaLN_modulation.1": (f"{at}norm1.linear",),
    }


LUMINA2 = {
    **_block("layers"),
    **_block("noise_refiner"),
    **_block("context_refiner"),
    "x_embedder": ("x_embedder",),
    "cap_embedder.1": (f"{_TIME_AND_TEXT}.caption_embedder.1",),
    "t_embedder.mlp.0": (f"{_TIME_AND_TEXT}.timestep_embedder.linear_1",),
    "t_embedder.mlp.2": (f"{_TIME_AND_TEXT}.timestep_embedder.linear_2",),
    "final_layer.adaLN_modulation.1": ("norm_out.linear_1",),
    "final_layer.linear": ("norm_out.linear_2",),
}
"""The release's layers, each with diffusers'."""
