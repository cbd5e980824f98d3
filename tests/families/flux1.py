"""FLUX.1 dev at a tiny size, by diffusers' FluxPipeline."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowloom.models.families.flux1 import FAMILY
from flowloom.models.family import Conditioning, Grid
from tests.fakes.tiny_pipelines import make_flux1_pipeline
from tests.families.tiny import TinyImages

MAX_LENGTH = 24


class TinyFlux1(TinyImages):
    """See TinyPipeline."""

    family = FAMILY
    model: dict[str, Any] = {"t5_max_length": MAX_LENGTH}
    guidance = 2.5

    def make(self, t5_path: Path, folder: Path) -> Any:
        return make_flux1_pipeline(t5_path, folder, is_dev=True)

    def texts(self, pipeline: Any, captions: Sequence[str]) -> list[Conditioning]:
        states, pooled, _ = pipeline.encode_prompt(list(captions), None, max_sequence_length=MAX_LENGTH)
        return [{"states": one, "pooled": other} for one, other in zip(states, pooled, strict=True)]

    def velocity(
        self, network: Any, x: Tensor, noise_level: Tensor, texts: Sequence[Conditioning], grid: Grid
    ) -> Tensor:
        from diffusers import FluxPipeline

        rows, columns = grid[0] // 2, grid[1] // 2
        return network(
            hidden_states=x,
            encoder_hidden_states=torch.stack([text["states"] for text in texts]),
            pooled_projections=torch.stack([text["pooled"] for text in texts]),
            timestep=noise_level,
            img_ids=FluxPipeline._prepare_latent_image_ids(1, rows, columns, x.device, x.dtype),
            txt_ids=torch.zeros(MAX_LENGTH, 3),
            guidance=torch.ones_like(noise_level),
            return_dict=False,
        )[0]

    def arguments(self) -> dict[str, Any]:
        return {"guidance_scale": self.guidance, "max_sequence_length": MAX_LENGTH}
