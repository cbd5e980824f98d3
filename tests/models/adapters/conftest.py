"""A small Chroma, inputs for it, and adapters that have learnt something."""

import random
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from flowloom.models.adapters.adapter import Adapter, Kind, Site, attach, attach_at
from flowloom.models.chroma_names import to_diffusers as weights_for_diffusers
from flowloom.nn.chroma import Chroma, ChromaParams

PARAMS = ChromaParams(16, 32, 64, 4.0, 2, 2, 2, (4, 14, 14), 10_000, True, 16, 2, 32)
TARGETS = ["double_blocks", "single_blocks", "img_in", "txt_in", "final_layer"]


class Inputs(NamedTuple):
    """The arguments of Chroma's forward, in its order."""

    latents: Tensor
    noise_level: Tensor
    text: Tensor
    image_ids: Tensor


@pytest.fixture
def inputs() -> Inputs:
    generator = torch.Generator().manual_seed(1)
    ids = torch.stack([torch.zeros(12), torch.arange(12) // 4, torch.arange(12) % 4], dim=1)
    return Inputs(
        torch.randn(2, 12, 16, generator=generator),
        torch.tensor([0.25, 0.75]),
        torch.randn(2, 6, 32, generator=generator),
        ids,
    )


@pytest.fixture
def make_network() -> Callable[[], Chroma]:
    """Makes the same network at each call."""

    def make() -> Chroma:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return Chroma(PARAMS)

    return make


@pytest.fixture
def attach_trained() -> Callable[..., Adapter]:
    """Attaches an adapter whose weights are not the first ones."""

    def attach_it(
        network: nn.Module, kind: Kind, rank: int = 4, alpha: float = 2.0, targets: list[str] = TARGETS
    ) -> Adapter:
        return trained(attach(network, kind, rank, alpha, targets))

    return attach_it


def trained(adapter: Adapter) -> Adapter:
    generator = torch.Generator().manual_seed(2)
    for parameter in adapter.parameters.values():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return adapter


@pytest.fixture
def attach_uneven() -> Callable[..., Adapter]:
    """Attaches a trained adapter whose layers have different ranks and alphas, as files may have."""

    def attach_it(network: nn.Module, kind: Kind, seed: int = 0) -> Adapter:
        draw = random.Random(seed)
        linears = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
        names = [name for name in linears if any(target in name for target in TARGETS)]
        sites = {
            name: Site(draw.randint(1, 9), draw.choice([0.5, 1.0, 3.0, 8.0, 20.0]), draw.choice([-1, 2, 4]))
            for name in names
        }
        (rank, alpha, _, _), others = sites[names[0]], {n: (s.rank, s.alpha) for n, s in sites.items()}
        meta = {"kind": kind, "rank": rank, "alpha": alpha, "targets": names, "sites": others}
        return trained(attach_at(network, kind, sites, meta))

    return attach_it


@pytest.fixture
def weights_of() -> Callable[[nn.Module, Adapter], dict[str, Tensor]]:
    """Finds the weights (out, in) with which adapted layers compute, by what they do to unit vectors."""

    def weights(network: nn.Module, adapter: Adapter) -> dict[str, Tensor]:
        found = {}
        with torch.no_grad():
            for name in adapter.layers:
                layer = network.get_submodule(name)
                size = adapter.base_weight(name).shape[1]
                found[name] = (layer(torch.eye(size)) - layer(torch.zeros(1, size))).T
        return found

    return weights


@pytest.fixture
def make_pipeline():
    """Makes a ChromaPipeline around weights of ours; it has no text encoder and no VAE."""

    def make(weights: dict[str, Tensor]) -> Any:
        from diffusers import ChromaPipeline, ChromaTransformer2DModel, FlowMatchEulerDiscreteScheduler

        transformer = ChromaTransformer2DModel(
            in_channels=16,
            num_layers=2,
            num_single_layers=2,
            attention_head_dim=32,
            num_attention_heads=2,
            joint_attention_dim=32,
            axes_dims_rope=(4, 14, 14),
            approximator_num_channels=16,
            approximator_hidden_dim=32,
            approximator_layers=2,
        )
        transformer.load_state_dict(weights_for_diffusers(weights))
        scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
        pipeline = ChromaPipeline(scheduler, None, None, None, transformer)  # pyright: ignore[reportArgumentType]
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    return make
