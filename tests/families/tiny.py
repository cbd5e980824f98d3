"""A model family at a tiny random size: what the contract needs to compare ours with diffusers'."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from flowloom.models.family import Conditioning, Grid, ModelFamily


class TinyPipeline(Protocol):
    """diffusers' pipeline of one family. None of its methods uses our network or encoders.

    Add an object of this kind to FAMILIES in test_contract.py; the tests there are the same for all.
    """

    family: ModelFamily
    model: dict[str, Any]
    """Keys of the model section beside `path`, such as a shorter text."""
    guidance: float
    """Guidance in `image`; 1 without the notion."""

    def make(self, t5_path: Path, folder: Path) -> Any:
        """The pipeline, with random weights that are the same each time; `folder` is for its tokenizers.

        The hidden size must not be below the width of a packed token, or nothing can be learned.
        """
        ...

    def texts(self, pipeline: Any, captions: Sequence[str]) -> list[Conditioning]:
        """The tensors of each caption as the pipeline makes them."""
        ...

    def velocity(
        self, network: Any, x: Tensor, noise_level: Tensor, texts: Sequence[Conditioning], grid: Grid
    ) -> Tensor:
        """Noise - data of tokens `x` (B, L, D), by a call of diffusers' `network` as in the pipeline."""
        ...

    def latents(
        self, pipeline: Any, prompt: str, tokens: Tensor, size: tuple[int, int], steps: int
    ) -> Tensor:
        """Tokens (1, L, D) that the pipeline makes of noise `tokens`, without classifier-free guidance."""
        ...

    def image(
        self, pipeline: Any, prompt: str, tokens: Tensor, size: tuple[int, int], steps: int
    ) -> np.ndarray:
        """The image (H, W, 3) of `latents`, in [0, 255]."""
        ...


class TinyImages:
    """`latents` and `image` of a pipeline that takes packed noise and gives packed latents."""

    def latents(
        self, pipeline: Any, prompt: str, tokens: Tensor, size: tuple[int, int], steps: int
    ) -> Tensor:
        """See TinyPipeline."""
        return self.run(pipeline, prompt, tokens, size, steps, "latent")

    def image(
        self, pipeline: Any, prompt: str, tokens: Tensor, size: tuple[int, int], steps: int
    ) -> np.ndarray:
        """See TinyPipeline."""
        return self.run(pipeline, prompt, tokens, size, steps, "np")[0] * 255

    def run(
        self, pipeline: Any, prompt: str, tokens: Tensor, size: tuple[int, int], steps: int, output: str
    ) -> Any:
        """The images or latents of a call of `pipeline`."""
        return pipeline(
            prompt=prompt,
            width=size[0],
            height=size[1],
            num_inference_steps=steps,
            latents=self.noise(tokens, size),
            output_type=output,
            **self.arguments(),
        ).images

    def noise(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        """Noise in the form that the pipeline takes."""
        return tokens

    def arguments(self) -> dict[str, Any]:
        """Further arguments of the pipeline, such as its guidance."""
        raise NotImplementedError
