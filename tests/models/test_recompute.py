"""Recomputed blocks on every family: the same numbers, k of n blocks, and the memory that estimates count."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel, Krea2Transformer2DModel, QwenImageTransformer2DModel
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from flowloom.models.adapters.adapter import attach
from flowloom.models.families.chroma import FAMILY as CHROMA
from flowloom.models.families.flux1 import FAMILY as FLUX1
from flowloom.models.families.krea2 import FAMILY as KREA2
from flowloom.models.families.qwen_image import FAMILY as QWEN_IMAGE
from flowloom.models.family import ModelFamily, family_of
from flowloom.nn.chroma import CHROMA1, Chroma
from flowloom.nn.recompute import Recompute

pytestmark = pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning")
HEAD, TEXT, GRID = 128, 16, (16, 12)
TOKENS = TEXT + GRID[0] * GRID[1] // 4
Network = Callable[[int, int, int], nn.Module]


def make_chroma(width: int, doubles: int, singles: int) -> nn.Module:
    """Chroma with random weights."""
    sizes = {"hidden_size": width, "num_heads": width // HEAD, "context_in_dim": 32}
    approximator = {"approximator_depth": 1, "approximator_hidden_size": 16}
    torch.manual_seed(4)
    network = Chroma(replace(CHROMA1, depth=doubles, depth_single_blocks=singles, **sizes, **approximator))
    network.distilled_guidance_layer.requires_grad_(False)
    return network


def make_flux1(width: int, doubles: int, singles: int) -> nn.Module:
    """FLUX.1 dev with random weights."""
    torch.manual_seed(4)
    return FluxTransformer2DModel(
        in_channels=64,
        num_layers=doubles,
        num_single_layers=singles,
        attention_head_dim=HEAD,
        num_attention_heads=width // HEAD,
        joint_attention_dim=32,
        pooled_projection_dim=8,
        axes_dims_rope=(16, 56, 56),
        guidance_embeds=True,
    )


def make_qwen_image(width: int, doubles: int, singles: int) -> nn.Module:
    """Qwen-Image with random weights; all its blocks are double."""
    torch.manual_seed(4)
    return QwenImageTransformer2DModel(
        in_channels=64,
        num_layers=doubles + singles,
        attention_head_dim=HEAD,
        num_attention_heads=width // HEAD,
        joint_attention_dim=32,
    )


def make_krea2(width: int, doubles: int, singles: int) -> nn.Module:
    """Krea 2 with random weights; its blocks are all of one kind."""
    torch.manual_seed(4)
    return Krea2Transformer2DModel(
        in_channels=64,
        num_layers=doubles + singles,
        attention_head_dim=HEAD,
        num_attention_heads=width // HEAD,
        num_key_value_heads=max(1, width // HEAD // 4),
        intermediate_size=width * 8 // 3,
        text_hidden_dim=16,
        num_text_layers=2,
        text_num_attention_heads=1,
        text_num_key_value_heads=1,
        text_intermediate_size=16,
    )


FAMILIES = {
    "chroma": (CHROMA, make_chroma),
    "flux1": (FLUX1, make_flux1),
    "krea2": (KREA2, make_krea2),
    "qwen-image": (QWEN_IMAGE, make_qwen_image),
}


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> tuple[ModelFamily, Network]:
    return FAMILIES[request.param]


def predict(family: ModelFamily, network: nn.Module) -> Tensor:
    draw = torch.Generator().manual_seed(3)
    text = {"states": torch.randn(TEXT, 32, generator=draw), "pooled": torch.randn(8, generator=draw)}
    x = torch.randn(1, TOKENS - TEXT, 64, generator=draw)
    return family.predict(network, x, torch.tensor([0.4]), [text], GRID)


def kept_bytes(family: ModelFamily, network: nn.Module) -> int:
    """Bytes that a forward pass keeps for the backward pass, other than weights."""
    weights = {weight.untyped_storage().data_ptr() for weight in network.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        predict(family, network)
    return sum(storage.nbytes() for storage in kept.values())


def chosen(part: str, count: int) -> Recompute:
    return Recompute(count) if part == "blocks" else Recompute(ffn=count)


def of_adapter(network: nn.Module) -> None:
    attach(network, "lora", 4, 4, ["blocks"])


def of_blocks(network: nn.Module) -> None:
    """Train the last block alone, as in a rotation."""
    blocks = [block for _, block in family_of(network).blocks(network)]
    network.requires_grad_(False)
    blocks[-1].requires_grad_(True)


@pytest.mark.parametrize(
    "prepare", [lambda network: None, of_adapter, of_blocks], ids=["full", "lora", "rotation"]
)
@pytest.mark.parametrize("counts", [(3, 0), (0, 3), (1, 1)], ids=["block", "ffn", "both"])
def test_recomputed_blocks_give_the_same_gradients_bit_for_bit(
    family: tuple[ModelFamily, Network], counts: tuple[int, int], prepare: Any
) -> None:
    found = []
    for each in ((0, 0), counts):
        network = family[1](HEAD, 1, 2)
        if prepare:
            prepare(network)
        family[0].recompute(network, Recompute(*each))
        velocity = predict(family[0], network)
        velocity.square().sum().backward()
        velocity = predict(family[0], network)
        velocity.square().sum().backward()
        found.append([velocity.detach(), *(p.grad for p in network.parameters() if p.grad is not None)])
    assert len(found[0]) > 4
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*found, strict=True))


@pytest.mark.parametrize("part", ["blocks", "ffn"])
def test_k_of_n_blocks_recompute(family: tuple[ModelFamily, Network], part: str) -> None:
    kept = []
    for count in range(5):
        network = family[1](HEAD, 2, 2)
        family[0].recompute(network, chosen(part, count))
        kept.append(kept_bytes(family[0], network))
    savings = [more - less for more, less in pairwise(kept)]
    assert min(savings) > 4 * HEAD * TOKENS * 3
    assert kept[0] - kept[-1] == sum(savings)


@pytest.mark.parametrize("part", ["blocks", "ffn"])
def test_a_block_that_needs_no_gradients_does_not_count(
    family: tuple[ModelFamily, Network], part: str
) -> None:
    """The rotation trains the last block: this one recomputes, although three are before it."""
    kept = []
    for count in (0, 1):
        network = family[1](HEAD, 2, 2)
        of_blocks(network)
        family[0].recompute(network, chosen(part, count))
        kept.append(kept_bytes(family[0], network))
    assert kept[1] < kept[0] - 4 * HEAD * TOKENS * 3


def test_the_estimate_counts_what_a_block_keeps(family: tuple[ModelFamily, Network]) -> None:
    """In multiples of a token's width, 19 double and 38 single blocks, all weights trained."""
    of_family, make = family
    counted = of_family.defaults.activations
    width = 2 * HEAD

    def measured(blocks: int = 0, ffn: int = 0) -> float:
        def kept(doubles: int, singles: int) -> int:
            network = make(width, doubles, singles)
            of_family.recompute(network, Recompute(blocks, ffn))
            return kept_bytes(of_family, network)

        least = kept(1, 1)
        each = 19 * (kept(2, 1) - least) + 38 * (kept(1, 2) - least)
        return each / 57 / (4 * width * TOKENS)

    # One more where attention's output is copied, as CUDA's kernels need it.
    assert counted.kept - 1.5 < measured() <= counted.kept
    assert counted.without_ffn - 1.5 < measured(0, 9) <= counted.without_ffn
    assert 0.9 < measured(9) < 1.1
