"""Krea 2's pipeline at tiny random sizes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from flowloom.import_warnings import quiet_imports
from flowloom.models.families.krea2 import FAMILY
from flowloom.models.family import Conditioning, Grid
from flowloom.models.qwen_text import TEMPLATE
from tests.families.qwen_image import make_tokenizer
from tests.families.tiny import TinyImages

with quiet_imports():
    from diffusers import (
        AutoencoderKLQwenImage,
        FlowMatchEulerDiscreteScheduler,
        Krea2Pipeline,
        Krea2Transformer2DModel,
    )
    from transformers import Qwen3VLConfig, Qwen3VLModel

NUM_LAYERS, TAPPED, MAX_LENGTH = 3, (1, 2, 3), 48


def make_encoder(tokenizer: Any) -> Qwen3VLModel:
    """Qwen3-VL with random weights."""
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": NUM_LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "rope_parameters": {
            "rope_type": "default",
            "mrope_section": [2, 1, 1],
            "mrope_interleaved": True,
            "rope_theta": 1e6,
        },
    }
    vision = {"depth": 1, "hidden_size": 32, "num_heads": 2, "out_hidden_size": 32, "intermediate_size": 48}
    return Qwen3VLModel(
        Qwen3VLConfig(text_config=text, vision_config=vision | {"deepstack_visual_indexes": [0]})
    )


def make_transformer() -> Krea2Transformer2DModel:
    """Krea 2's network with random weights, as wide as its latents."""
    return Krea2Transformer2DModel(
        in_channels=64,
        num_layers=3,
        attention_head_dim=16,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        timestep_embed_dim=32,
        text_hidden_dim=32,
        num_text_layers=len(TAPPED),
        text_num_attention_heads=4,
        text_num_key_value_heads=4,
        text_intermediate_size=48,
        num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1,
        axes_dims_rope=(4, 6, 6),
    )


class TinyKrea2(TinyImages):
    """See TinyPipeline."""

    family = FAMILY
    model: dict[str, Any] = {"t5_max_length": MAX_LENGTH}
    guidance = 0.0

    def make(self, t5_path: Path, folder: Path) -> Any:
        tokenizer = make_tokenizer(TEMPLATE)
        shift = {"base_shift": 0.5, "max_shift": 1.15, "base_image_seq_len": 256, "max_image_seq_len": 6400}
        with torch.random.fork_rng():
            torch.manual_seed(4)
            pipeline = Krea2Pipeline(
                scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, **shift),
                vae=AutoencoderKLQwenImage(base_dim=8, z_dim=16, num_res_blocks=1).eval(),
                text_encoder=make_encoder(tokenizer).eval(),
                tokenizer=cast("Any", tokenizer),
                transformer=make_transformer().eval(),
                text_encoder_select_layers=TAPPED,
            )
            for name, weight in pipeline.transformer.named_parameters():
                if "norm" in name or "table" in name:
                    weight.data.normal_(std=0.1)  # zeros hide a swapped or missing tensor
        return pipeline

    def texts(self, pipeline: Any, captions: Sequence[str]) -> list[Conditioning]:
        states, mask = pipeline.encode_prompt(list(captions), max_sequence_length=MAX_LENGTH)
        return [{"states": own[seen].flatten(1)} for own, seen in zip(states, mask, strict=True)]

    def velocity(
        self, network: Any, x: Tensor, noise_level: Tensor, texts: Sequence[Conditioning], grid: Grid
    ) -> Tensor:
        longest = max(len(text["states"]) for text in texts)
        # Padding of another value: the mask alone keeps it out.
        states = [
            nn.functional.pad(text["states"], (0, 0, 0, longest - len(text["states"])), value=3.0)
            for text in texts
        ]
        mask = torch.stack([torch.arange(longest) < len(text["states"]) for text in texts])
        rows, columns = grid[0] // 2, grid[1] // 2
        return network(
            hidden_states=x,
            encoder_hidden_states=torch.stack(states).unflatten(2, (len(TAPPED), -1)),
            timestep=noise_level,
            position_ids=Krea2Pipeline.prepare_position_ids(longest, rows, columns, x.device),
            encoder_attention_mask=mask,
            return_dict=False,
        )[0]

    def arguments(self) -> dict[str, Any]:
        return {"guidance_scale": self.guidance, "max_sequence_length": MAX_LENGTH}
