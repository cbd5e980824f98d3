"""A small Chroma made from nothing: the demo trains it, and tests use its size."""

from __future__ import annotations

import torch
from torch import Tensor

from flowloom.nn.chroma import Chroma, ChromaParams

TINY = ChromaParams(
    in_channels=64,
    context_in_dim=128,
    hidden_size=128,
    mlp_ratio=4.0,
    num_heads=4,
    depth=2,
    depth_single_blocks=3,
    axes_dim=(4, 14, 14),
    theta=10_000,
    qkv_bias=True,
    approximator_in_dim=64,
    approximator_depth=2,
    approximator_hidden_size=128,
)
"""Small enough for a test, deep enough to have every part."""

VARIATION = 0.25
"""Standard deviation of shifts and scales around 0, and of gates around 1."""
FASTEST = 10.5
"""Radians over the whole range of noise levels; quicker sinusoids would make the modulations jump."""


def random_chroma_weights(params: ChromaParams, seed: int) -> dict[str, Tensor]:
    """Weights to start training a small network from, by the checkpoint's names.

    The approximator is never trained, so it must be useful as it is made (`_tame_approximator`). The last
    layer is zero, so that training starts at the velocity 0.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Chroma(params)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if name.endswith(".bias"):
                    weight.zero_()
                elif not name.endswith(".scale"):
                    weight.normal_(std=weight.shape[1] ** -0.5)
                if name.endswith(("attn.proj.weight", "mlp.2.weight", "linear2.weight")):
                    weight.mul_(0.3)
            model.final_layer.linear.weight.zero_()
            _tame_approximator(model)
    return model.state_dict()


def _tame_approximator(model: Chroma) -> None:
    """Make a random approximator say: gates around 1, shifts and scales around 0, all smooth in noise level.

    Only slow sinusoids of the noise level are let in. What the random layers make of them and of the index
    is then read out by the last layer in closed form: a ridge regression onto "is this vector a gate", every
    third one being one, plus a random projection that varies with index and noise level.
    """
    approximator = model.distilled_guidance_layer
    quarter = model.params.approximator_in_dim // 4
    half = quarter // 2
    frequencies = 1000 * 10_000.0 ** (-torch.arange(half) / half)
    slow = (frequencies <= FASTEST).float().repeat(2)
    approximator.in_proj.weight[:, :quarter] *= 2 * slow
    approximator.in_proj.weight[:, quarter : 2 * quarter] = 0

    seen: list[Tensor] = []
    hook = approximator.out_proj.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model.modulations(torch.linspace(0, 1, 64))
    hook.remove()
    features = seen[0].double()
    is_gate = (torch.arange(features.shape[1]) % 3 == 2).double().expand(len(features), -1)
    mean = features.mean((0, 1))
    centred = (features - mean).flatten(0, 1)
    ridge = 1e-2 * len(centred) * torch.eye(centred.shape[1], dtype=torch.float64)
    target = is_gate.flatten() - is_gate.mean()
    gate = torch.linalg.solve(centred.T @ centred + ridge, centred.T @ target)
    spread = torch.randn(model.params.hidden_size, centred.shape[1], dtype=torch.float64)
    spread *= VARIATION / (centred @ spread.T).std()
    weight = spread + gate
    approximator.out_proj.weight.copy_(weight)
    approximator.out_proj.bias.copy_(is_gate.mean() - weight @ mean)
