"""The straight path between an image and noise.

Here `noise_level` 0 is the image and 1 is noise. Other schools count the other way: flow_matching and SiT
go from noise at 0 to the image at 1, so that their velocity is the negative of ours.
"""

from __future__ import annotations

from torch import Tensor


def interpolate(latents: Tensor, noise: Tensor, noise_level: Tensor) -> Tensor:
    """The point x = (1 - t) * latents + t * noise on the path (Liu et al. 2022, arXiv:2209.03003).

    Args:
        latents: (B, ...).
        noise: same shape.
        noise_level: (B,), float32 so that no level is lost to rounding.
    """
    t = _per_sample(noise_level, latents)
    return (1 - t) * latents + t * noise


def velocity_target(latents: Tensor, noise: Tensor) -> Tensor:
    """The velocity dx/dt of the path, noise - latents: the same at every point of it."""
    return noise - latents


def velocity_from_x0(prediction: Tensor, x: Tensor, noise_level: Tensor, eps: float) -> Tensor:
    """The velocity (x - prediction) / (t + eps) of a network that predicts the image.

    Args:
        prediction: (B, ...), the image that the network sees at `x`.
        x: same shape.
        noise_level: (B,) or, one for all, (1,).
        eps: keeps the objective finite near the image; 0 while sampling, which never asks at level 0.
    """
    return (x - prediction) / (_per_sample(noise_level, x) + eps)


def _per_sample(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(-1, *(1,) * (like.ndim - 1))
