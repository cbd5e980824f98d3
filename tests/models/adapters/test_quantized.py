"""A base in 8 or 4 bits: really held at that size, close to what it was, and trainable over."""

import sys

import pytest
import torch
from torch import nn

from flowloom.errors import ConfigError
from flowloom.models.adapters.adapter import attach
from flowloom.models.quantized import quantize_base
from flowloom.models.scaled_linear import Float8Linear

LEVELS = pytest.mark.parametrize(("level", "bits"), [("8bit", 8), ("4bit", 4)])
TARGETS = ["double_blocks", "single_blocks"]


def block_bytes(network: nn.Module) -> int:
    return sum(
        p.nbytes
        for block in (network.double_blocks, network.single_blocks)
        for p in block.parameters()  # pyright: ignore[reportAttributeAccessIssue]
    )


def wide(linear: nn.Linear) -> torch.Tensor:
    from peft.utils.integrations import dequantize_module_weight

    return dequantize_module_weight(linear).detach().float()


@LEVELS
def test_weights_are_held_at_that_size(level, bits, make_network) -> None:
    network = make_network().to(torch.bfloat16)
    before = block_bytes(network)
    quantize_base(network, level)
    # Beside the codes: biases and norms in bf16, and the scales.
    assert bits / 16 < block_bytes(network) / before < bits / 16 + 0.08
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear):
            assert (type(module) is nn.Linear) != ("_blocks." in name), name


@pytest.mark.parametrize("products", ["int8", "fp8"])
def test_narrow_products_need_no_more_memory(products, make_network) -> None:
    sizes = {}
    for chosen in ("wide", products):
        network = make_network().to(torch.bfloat16)
        quantize_base(network, "8bit", chosen)
        sizes[chosen] = block_bytes(network)
    assert sizes[products] == sizes["wide"]


@LEVELS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_the_network_stays_close_to_itself(level, bits, dtype, make_network, inputs) -> None:
    network = make_network().to(dtype)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
        before = network(*inputs)
        quantize_base(network, level)
        after = network(*inputs)
    assert after.dtype == before.dtype
    error = (after - before).norm() / before.norm()
    assert 0 < error < {8: 0.05, 4: 0.2}[bits]


def test_float8_keeps_its_digits_for_small_weights() -> None:
    """Unscaled, numbers below 2^-6 would be rounded to steps of 2^-9; trained networks are full of them."""
    generator = torch.Generator().manual_seed(0)
    linear = nn.Linear(256, 64)
    linear.weight.data = 0.01 * torch.randn(64, 256, generator=generator)
    narrow = Float8Linear(linear)
    error = (narrow.weight - linear.weight).norm() / linear.weight.norm()
    unscaled = (linear.weight.to(torch.float8_e4m3fn).float() - linear.weight).norm() / linear.weight.norm()
    assert error < 0.03
    assert unscaled > 1.5 * error


def test_float8_backward_equals_the_wide_layers() -> None:
    generator = torch.Generator().manual_seed(0)
    narrow = Float8Linear(nn.Linear(24, 40))
    reference = nn.Linear(24, 40)
    reference.weight.data, reference.bias.data = narrow.weight, narrow.bias.data
    x = torch.randn(3, 5, 24, generator=generator)
    one, two = x.clone().requires_grad_(), x.clone().requires_grad_()
    gradient = torch.randn(3, 5, 40, generator=generator)
    torch.testing.assert_close(narrow(one), reference(two))
    narrow(one).backward(gradient)
    reference(two).backward(gradient)
    torch.testing.assert_close(one.grad, two.grad)


def test_float8_saves_no_wide_weight_for_the_backward_pass() -> None:
    narrow = Float8Linear(nn.Linear(64, 64))
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        narrow(torch.randn(2, 64, requires_grad=True))
    assert all(t.dtype is torch.float8_e4m3fn for t in saved if t.shape == (64, 64))
    assert any(t.shape == (64, 64) for t in saved)


@LEVELS
@pytest.mark.parametrize("kind", ["lora", "dora", "lokr"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_an_adapter_learns_over_it(level, bits, kind, dtype, make_network, inputs) -> None:
    network = make_network().to(dtype)
    quantize_base(network, level)
    adapter = attach(network, kind, 4, 4, TARGETS)
    optimizer = torch.optim.AdamW(adapter.parameters.values(), lr=1e-2)
    target = torch.randn(2, 12, 16, generator=torch.Generator().manual_seed(3))
    losses = []
    for _ in range(8):
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
            loss = (network(*inputs).float() - target).square().mean()
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in adapter.parameters.values())
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


@LEVELS
def test_dora_starts_from_the_norms_of_the_rounded_rows(level, bits, make_network) -> None:
    network = make_network()
    quantize_base(network, level)
    adapter = attach(network, "dora", 4, 4, ["single_blocks.0.linear1"])
    base = wide(network.single_blocks[0].linear1.base_layer)
    torch.testing.assert_close(
        adapter.parameters["single_blocks.0.linear1.dora_scale"].data, base.norm(dim=1)
    )


def test_full_leaves_everything_unchanged(make_network) -> None:
    network = make_network()
    before = {name: (id(p), p.dtype) for name, p in network.named_parameters()}
    quantize_base(network, "full")
    assert {name: (id(p), p.dtype) for name, p in network.named_parameters()} == before


def test_4bit_where_there_is_none_gives_a_hint(make_network, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"base_model_quant_level.*meta.*8bit"):
        quantize_base(make_network().to("meta"), "4bit")
    monkeypatch.setitem(sys.modules, "bitsandbytes.nn.modules", None)
    with pytest.raises(ConfigError, match="pip install bitsandbytes"):
        quantize_base(make_network(), "4bit")
