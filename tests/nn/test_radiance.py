"""Radiance computes what the published code computes, in any number of patches at a time."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from flowloom.nn.patches import pack, positions, unpack
from flowloom.nn.radiance import (
    RADIANCE1,
    NerfBlock,
    PixelEmbedder,
    Radiance,
    RadianceParams,
    cosines,
    params_from_shapes,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "radiance.json"
SMALL = RadianceParams(768, 24, 64, 4.0, 2, 2, 2, (4, 14, 14), 10_000, True, 16, 2, 32, 16, 8, 2, 3, 4)
"""Of the networks in the golden file."""


def seeded(shapes: dict[str, torch.Size]) -> dict[str, Tensor]:
    """Weights that depend on the names in alphabetical order, as the golden file's script makes them."""
    weights: dict[str, Tensor] = {}
    for seed, (name, shape) in enumerate(sorted(shapes.items())):
        draw = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        scale = 0.1 if len(shape) == 1 else math.prod(shape[1:]) ** -0.5
        weights[name] = 1 + 0.1 * draw if name.endswith("scale") else scale * draw
    return weights


@pytest.fixture
def network() -> Radiance:
    with torch.random.fork_rng(devices=[]):
        model = Radiance(SMALL)
    model.load_state_dict(seeded({name: tensor.shape for name, tensor in model.state_dict().items()}))
    return model


@pytest.fixture
def inputs() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Images (2, 3, 32, 48), text, noise levels, the weights of the golden gradients, and positions."""
    draw = torch.Generator().manual_seed(1000)
    image, text = torch.randn(2, 3, 32, 48, generator=draw), torch.randn(2, 5, 24, generator=draw)
    upstream = torch.randn(2, 3, 32, 48, generator=draw)
    return image, text, torch.tensor([0.3, 0.9]), upstream, positions(2, 3)


def test_the_released_network_has_its_size_and_names() -> None:
    with torch.device("meta"):
        model = Radiance(RADIANCE1)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert (sum(weight.numel() for weight in model.parameters()), len(shapes)) == (9_506_132_227, 658)
    assert params_from_shapes(shapes) == RADIANCE1
    assert shapes["nerf_image_embedder.embedder.0.weight"] == (64, 67)
    assert shapes["nerf_blocks.3.param_generator.weight"] == (49_152, 3072)
    assert shapes["nerf_final_layer_conv.conv.weight"] == (3, 64, 3, 3)


def test_output_and_all_gradients_equal_the_published_codes(network, inputs) -> None:
    """The file holds numbers that FLOW's `model_dct.py` computed from these weights and inputs."""
    image, text, level, upstream, ids = inputs
    golden = json.loads(GOLDEN.read_text())
    found = unpack(network(pack(image, 16), level, text, ids), 32, 48, 16)
    expected = torch.tensor(golden["output"])
    torch.testing.assert_close(found.flatten()[::97], expected, rtol=1e-5, atol=1e-5)
    (found * upstream).sum().backward()
    gradients = {name: weight.grad for name, weight in network.named_parameters() if weight.grad is not None}
    assert gradients.keys() == golden["gradients"].keys()
    for name, (norm, product) in golden["gradients"].items():
        other = torch.randn(gradients[name].shape, generator=torch.Generator().manual_seed(7))
        assert float(gradients[name].norm()) == pytest.approx(norm, rel=1e-5), name
        assert float((gradients[name] * other).sum()) == pytest.approx(product, abs=3e-5 * norm), name


def test_masked_text_is_the_same_as_no_text_there(network, inputs) -> None:
    image, text, level, _, ids = inputs
    mask = torch.tensor([[True] * 5, [True, True, True, False, False]])
    with torch.no_grad():
        masked = network(pack(image, 16), level, text, ids, mask)
        short = network(pack(image[1:], 16), level[1:], text[1:, :3], ids)
    torch.testing.assert_close(masked[1:], short, rtol=0, atol=2e-5)


def test_the_approximator_gets_no_gradient(network, inputs) -> None:
    image, text, level, _, ids = inputs
    network(pack(image, 16), level, text, ids).sum().backward()
    assert all(weight.grad is None for weight in network.distilled_guidance_layer.parameters())


def test_places_in_a_patch_are_written_as_weighted_cosines() -> None:
    table = cosines(4, 3, torch.device("cpu")).reshape(4, 4, 9)
    for y in range(4):
        for x in range(4):
            for i in range(3):
                for j in range(3):
                    wave = math.cos(math.pi * i * x / 3) * math.cos(math.pi * j * y / 3) / (1 + i * j)
                    assert float(table[y, x, 3 * i + j]) == pytest.approx(wave, abs=1e-6)


def test_a_nerf_block_is_an_mlp_with_the_weights_of_its_patch() -> None:
    """The formulas, one pixel of one patch at a time."""
    torch.manual_seed(0)
    block = NerfBlock(6, 4, 2)
    features, states = torch.randn(3, 5, 4), torch.randn(3, 6)
    found = block(features, states)
    for patch in range(3):
        gate, value, last = block.param_generator(states[patch]).chunk(3)
        gate, value, last = gate.view(4, 8), value.view(4, 8), last.view(8, 4)
        gate, value, last = (nn.functional.normalize(matrix, dim=0) for matrix in (gate, value, last))
        for pixel in features[patch]:
            x = pixel / (pixel.pow(2).mean() + 1e-6).sqrt()
            expected = pixel + (nn.functional.silu(x @ gate) * (x @ value)) @ last
            assert any(torch.allclose(expected, one, atol=1e-6) for one in found[patch])


def test_some_patches_at_a_time_change_no_number(network, inputs) -> None:
    image, text, level, upstream, ids = inputs
    runs = []
    for num_at_a_time in (256, 5):
        for block in network.nerf_blocks:
            block.num_at_a_time = num_at_a_time
        network.zero_grad()
        found = unpack(network(pack(image, 16), level, text, ids), 32, 48, 16)
        (found * upstream).sum().backward()
        runs.append((found, [weight.grad for weight in network.parameters() if weight.grad is not None]))
    (whole, gradients), (parts, others) = runs
    torch.testing.assert_close(whole, parts, rtol=0, atol=1e-5)
    for one, other in zip(gradients, others, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_pixels_are_embedded_in_float32_with_weights_of_any_format() -> None:
    torch.manual_seed(0)
    embedder = PixelEmbedder(8, 4, 16)
    pixels = torch.rand(2, 256, 3)
    exact = embedder(pixels)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(embedder(pixels), exact)
    narrow = embedder.to(torch.bfloat16)(pixels)
    assert narrow.dtype == torch.float32
    assert 0 < (narrow - exact).abs().max() < 0.05


def test_bfloat16_predicts_almost_the_same(network, inputs) -> None:
    image, text, level, _, ids = inputs
    with torch.no_grad():
        exact = network(pack(image, 16), level, text, ids)
        with torch.autocast("cpu", torch.bfloat16):
            found = network(pack(image, 16), level, text, ids)
    assert (found - exact).pow(2).mean() < 0.002 * exact.pow(2).mean()
