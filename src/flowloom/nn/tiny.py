"""Small Chroma networks made from nothing: for the demo and the tests."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional

from flowloom.nn.chroma import Approximator, Chroma, ChromaParams, approximator_inputs

TINY = ChromaParams(64, 128, 256, 4.0, 8, 2, 4, (4, 14, 14), 10_000, True, 64, 2, 256)
"""Chroma's architecture at 7 million parameters."""

SHIFT_DEVIATION = 0.5
"""How far shifts move between image and noise; in a normalised stream of deviation 1."""
_NUM_CURVES = 3
_NUM_LEVELS = 65


def random_chroma_weights(params: ChromaParams, seed: int) -> dict[str, Tensor]:
    """A network ready to be trained: every parameter by its checkpoint name, float32.

    The approximator never learns, so it is made to work from the start (`make_approximator`). The last layer
    is zero: an untrained network predicts nothing rather than anything.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in Chroma(params).state_dict().items()}
    weights = {name: _initial(name, shape, generator) for name, shape in shapes.items()}
    approximator = make_approximator(params, seed)
    return weights | {f"distilled_guidance_layer.{name}": tensor for name, tensor in approximator.items()}


def _initial(name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Scales 1, biases and last layer 0, matrices that keep the variance (Glorot & Bengio 2010)."""
    if name.endswith("scale"):
        return torch.ones(shape)
    if len(shape) == 1 or name.startswith("final_layer"):
        return torch.zeros(shape)
    rows, columns = (shape[0] // 3, shape[1]) if ".qkv." in name else shape
    return torch.randn(shape, generator=generator) * (2 / (rows + columns)) ** 0.5


@torch.no_grad()
def make_approximator(params: ChromaParams, seed: int) -> dict[str, Tensor]:
    """Weights, by name within it, of an approximator that needs no training.

    Gates are 1 and scales 0 at every noise level; shifts follow smooth curves of the level, so that each
    block knows it. (Curves in gates and scales as well make training slower.) The layers are random, over the
    index and the slow sinusoids of the level; on what they make of these, the last layer is a least-squares
    fit. Guidance has no effect.
    """
    generator = torch.Generator().manual_seed(seed)
    sizes = params.approximator_in_dim, params.hidden_size, params.approximator_hidden_size
    with torch.random.fork_rng(devices=[]):
        model = Approximator(*sizes, params.approximator_depth)
    for name, weight in model.named_parameters():
        if not name.endswith("scale"):
            gain = weight.shape[1] ** -0.5 if weight.ndim == 2 else 0.3
            weight.copy_(gain * torch.randn(weight.shape, generator=generator))
    part = params.approximator_in_dim // 4
    # The faster half turns five times and more between image and noise: as good as random, unlearnt.
    slow = torch.arange(part) % (part // 2) >= part // 4
    model.in_proj.weight *= torch.cat((slow, torch.zeros(part), torch.ones(2 * part)))

    level = torch.linspace(0, 1, _NUM_LEVELS)
    inputs = approximator_inputs(params, level, torch.zeros_like(level)).flatten(0, 1)
    features = model.features(inputs).double()
    features = functional.pad(features, (0, 1), value=1.0)
    wanted = _modulation_curves(params.num_modulations, level).flatten(0, 1)
    ridge = 1e-5 * len(features) * torch.eye(features.shape[1], dtype=torch.float64)
    fit = cast("Tensor", torch.linalg.solve(features.T @ features + ridge, features.T @ wanted)).float()

    directions = torch.randn(_NUM_CURVES, params.hidden_size, generator=generator)
    directions *= SHIFT_DEVIATION / (_NUM_CURVES / 2) ** 0.5
    table = fit @ torch.cat((torch.ones(1, params.hidden_size), directions))
    model.out_proj.weight.copy_(table[:-1].T)
    model.out_proj.bias.copy_(table[-1])
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def _modulation_curves(num_modulations: int, level: Tensor) -> Tensor:
    """Weights of the curves in each vector at each level, (T, N, 1 + curves): gates of 1, shifts of cosines.

    Everywhere in Chroma the order of the vectors is shift, scale, gate.
    """
    role = torch.arange(num_modulations) % 3
    cosines = torch.cos(math.pi * torch.arange(1, _NUM_CURVES + 1) * level[:, None].double())
    gates = (role == 2).double().expand(len(level), -1)[..., None]
    return torch.cat((gates, (role == 0)[:, None] * cosines[:, None]), dim=-1)
